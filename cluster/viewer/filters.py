"""Which episodes a page lists: what its address asks for, as a condition of SQL with its values beside it.

Names of columns are written here and nowhere else comes text into the condition: what an address says is a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from milepost.cluster.trajectories.fates import Fate
from milepost.envs.types import Outcome, Split

ENVIRONMENT: Final = "coalesce(nullif(env_name, ''), env)"
"""What an environment is called."""
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Order = Literal["newest", "oldest", "lowest reward", "highest reward", "most turns", "most tokens"]
_ORDERS: Final[dict[_Order, str]] = {
    "newest": "episode DESC",
    "oldest": "episode",
    "lowest reward": "outcome IS NULL, reward, episode DESC",  # a failed one has no reward to compare
    "highest reward": "outcome IS NULL, reward DESC, episode DESC",
    "most turns": "num_turns DESC, episode DESC",
    "most tokens": "num_tokens DESC, episode DESC",
}
ORDERS: Final = tuple(_ORDERS)


class Filters(BaseModel):
    """What an address may ask for, and nothing else. What is None does not restrict."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fate: Fate | None = None
    outcome: Outcome | None = None
    split: Split | None = None
    env: str | None = None
    cohort: str | None = None
    task: str | None = None
    """A group's id, or a task's seed."""
    version: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """A policy version that sampled any of its tokens."""
    reward_min: _Number | None = None
    reward_max: _Number | None = None
    score: str | None = None
    """Name of an evaluator's score, which the two bounds are of."""
    score_min: _Number | None = None
    score_max: _Number | None = None
    q: str | None = None
    """Text in a prompt, a response, an action or a tool's facts, in whatever case."""
    order: _Order = "newest"
    page: Annotated[int, Field(ge=1, le=10**6)] = 1

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, asked: dict[str, Any]) -> dict[str, Any]:
        """A field that a form leaves empty asks for nothing."""
        return {name: value for name, value in asked.items() if value != ""}

    @property
    def sql_order(self) -> str:
        """What follows ORDER BY."""
        return _ORDERS[self.order]

    @property
    def is_open(self) -> bool:
        """Whether it restricts nothing."""
        return not self.asked.keys() - {"order", "page"}

    @property
    def asked(self) -> dict[str, Any]:
        """Name -> value of all that differs from the default, as an address spells it."""
        return self.model_dump(exclude_defaults=True)

    def condition(self, scores: Mapping[int, Mapping[str, float | None]]) -> tuple[str, list[Any]]:
        """A condition on the table of episodes, and the values of its question marks, in order.

        Args:
            scores: index of an episode -> its scores by name.
        """
        terms: list[str] = []
        values: list[Any] = []
        for column in ("fate", "outcome", "split", "cohort"):
            if (value := getattr(self, column)) is not None:
                terms.append(f"{column} = ?")
                values.append(value)
        for term, value in (
            (f"{ENVIRONMENT} = ?", self.env),
            ("reward >= ? AND outcome IS NOT NULL", self.reward_min),
            ("reward <= ? AND outcome IS NOT NULL", self.reward_max),
        ):
            if value is not None:
                terms.append(term)
                values.append(value)
        if self.task is not None:
            terms.append("(group_id = ? OR seed::VARCHAR = ?)")
            values += [self.task] * 2
        if self.version is not None:
            terms.append("? BETWEEN oldest_version AND newest_version")
            values.append(self.version)
        if self.q is not None:
            said = " OR ".join(
                f"contains(lower({column}), lower(?))" for column in ("prompt", "response", "action", "tool")
            )
            terms.append(f"episode IN (SELECT episode FROM turns WHERE {said})")
            values += [self.q] * 4
        if self.score is not None:
            terms.append('list_contains(?::INTEGER[], "index")')
            values.append([index for index, found in scores.items() if self._is_in(found.get(self.score))])
        return " AND ".join(terms) or "true", values

    def _is_in(self, value: float | None) -> bool:
        low, high = self.score_min, self.score_max
        return value is not None and (low is None or value >= low) and (high is None or value <= high)
