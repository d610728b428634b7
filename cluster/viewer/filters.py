"""Which episodes a page lists: what its address asks for, as a condition of SQL with its values beside it.

Names of columns are written here and nowhere else comes text into the condition: what an address says is a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

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


def _none_if_blank(value: object) -> object:
    """A field that a form leaves empty."""
    return None if value == "" else value


class Filters(BaseModel):
    """What an address may ask for, and nothing else. What is None does not restrict."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fate: Annotated[Fate | None, BeforeValidator(_none_if_blank)] = None
    outcome: Annotated[Outcome | None, BeforeValidator(_none_if_blank)] = None
    split: Annotated[Split | None, BeforeValidator(_none_if_blank)] = None
    env: Annotated[str | None, BeforeValidator(_none_if_blank)] = None
    cohort: Annotated[str | None, BeforeValidator(_none_if_blank)] = None
    task: Annotated[str | None, BeforeValidator(_none_if_blank)] = None
    """A group's id, or a task's seed."""
    version: Annotated[int | None, BeforeValidator(_none_if_blank)] = None
    """A policy version that sampled any of its tokens."""
    reward_min: Annotated[_Number | None, BeforeValidator(_none_if_blank)] = None
    reward_max: Annotated[_Number | None, BeforeValidator(_none_if_blank)] = None
    score: Annotated[str | None, BeforeValidator(_none_if_blank)] = None
    """Name of an evaluator's score, which the two bounds are of."""
    score_min: Annotated[_Number | None, BeforeValidator(_none_if_blank)] = None
    score_max: Annotated[_Number | None, BeforeValidator(_none_if_blank)] = None
    q: Annotated[str | None, BeforeValidator(_none_if_blank)] = None
    """Text in a prompt, a response, an action or a tool's facts, in whatever case."""
    order: Annotated[_Order, BeforeValidator(lambda value: value or "newest")] = "newest"
    page: Annotated[int, Field(ge=1, le=10**6), BeforeValidator(lambda value: value or 1)] = 1

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
