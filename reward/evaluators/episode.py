"""What evaluators look at: a finished episode without ids and log-probs, and what was to be expected of it.

Plain values, so that they can be read from any store: the rows of a run, a file of results, another program's log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from milepost.envs.types import Outcome


class Call(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One call of a tool."""

    name: str
    arguments: str = ""
    """Canonical text of them: equal for equal arguments."""
    known: bool = True
    """Whether there is such a tool."""
    ok: bool = True
    """Whether it did what it was called for."""


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One turn."""

    anchor: str
    """The state in which it started."""
    next_anchor: str
    action: str | None
    """Canonical action; None where the response held no valid one."""
    progress: float | None = None
    """Share of the way to the goal after it, in [0, 1], where the environment knows it."""
    calls: tuple[Call, ...] = ()
    violations: tuple[str, ...] = ()
    """Names of the rules it broke, as the environment says."""
    prompt_tokens: int = 0
    """Of the whole prompt."""
    cached_tokens: int = 0
    """Of these, how many the turn before had already: what a prefix cache can save."""
    response_tokens: int = 0
    response: str = ""
    """What the policy wrote, thoughts included."""
    observation: str = ""
    """What came of it, as text."""


class Episode(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One finished episode. Raises ValueError without steps."""

    outcome: Outcome
    steps: tuple[Step, ...]
    task: str = ""
    """The task as it was said, as text."""

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("an episode needs at least one step")

    @property
    def won(self) -> bool:
        """Whether it solved its task."""
        return self.outcome == "success"

    @property
    def calls(self) -> list[Call]:
        """All calls, in order."""
        return [call for step in self.steps for call in step.calls]


class Expected(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a scenario says of a good episode; what is empty or None says nothing."""

    ideal_steps: int | None = None
    tools: tuple[str, ...] = ()
    """To be called at least once."""
    forbidden: tuple[str, ...] = ()
    """Tools whose call is fatal, whatever comes of it."""
    result: str | None = None
    """The answer, for the lexical scores."""
    criteria: tuple[str, ...] = ()
    """What an answer or an observation should mention, for the lexical scores."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What many episodes of one task tell of its states: what an episode of it is judged by."""

    value: Mapping[str, float]
    """State -> share of episodes that solve the task from there, discounted; of every state that somebody acted in."""
    choices: Mapping[str, Mapping[str | None, float]]
    """State -> action -> the same after that action; None stands for no valid action."""
    shortest: int | None
    """Steps of the shortest solution known that breaks no rule; None where there is none."""
