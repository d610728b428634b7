"""The nouns, one type per stage of life: Task -> Turn -> Trajectory or Failure -> Group.

What travels between processes is one of these, encoded as msgpack and decoded strictly: an unknown field, a missing one
or a wrong type is refused where it arrives. Invariants are checked at birth, once. This file loads nothing heavy and
does not know how trajectories are made, stored or trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

Split = Literal["train", "heldout", "ood"]
Outcome = Literal["success", "failure", "truncated"]
Boundary = Literal["env", "engine", "reward", "infra"]
OptionValue = bool | int | float | str | list[Any] | dict[str, Any]
"""A value of an environment's constructor: what TOML and the wire know, lists and tables of such values included."""
MAX_COHORT: Final = 64
"""Characters of a cohort's name."""
COHORT_RULE: Final = f"a cohort is text of at most {MAX_COHORT} printable characters"
Cohort = Annotated[str, msgspec.Meta(max_length=MAX_COHORT)]
"""A kind of task (a difficulty, a family of maps) by which success is told; "" is none."""


MAX_REWARD: Final = 1e12
"""What the magnitudes of an episode's rewards may add up to: squares of it, and sums over a batch, stay finite."""


def check_rewards(rewards: Iterable[float]) -> None:
    """Raises ValueError unless the rewards of an episode are finite and add up to at most `MAX_REWARD` in magnitude."""
    total = 0.0
    for turn, reward in enumerate(rewards):
        if not math.isfinite(reward):
            raise ValueError(f"the reward of turn {turn} is {reward}, not a finite number")
        total += abs(reward)
    if total > MAX_REWARD:
        raise ValueError(
            f"the rewards of an episode add up to {total:.3g} in magnitude, the limit is {MAX_REWARD:.0e}: "
            "scale them, best to about 1"
        )


def check_options(options: Mapping[str, object]) -> None:
    """Raises ValueError, naming the option, unless all values are flags, finite numbers, text, or lists and tables of
    such.
    """
    for name, value in options.items():
        _check_option(name, value)
    if not is_cohort(options.get("cohort", "")):
        raise ValueError(f"option cohort is {options['cohort']!r}; {COHORT_RULE}")


def _check_option(name: str, value: object) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"option {name} has the key {key!r}, which is not text")
            _check_option(f"{name}.{key}", inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_option(f"{name}[{index}]", inner)
    elif not isinstance(value, bool | int | float | str):
        raise ValueError(
            f"option {name} is {type(value).__name__} {value}; an option is true or false, a number, text, or a list "
            "or table of such"
        )
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError(f"option {name} has more than 64 bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"option {name} is {value}, not a finite number")


def is_cohort(value: object) -> bool:
    """Whether `value` can name a cohort: text of at most `MAX_COHORT` printable characters."""
    return isinstance(value, str) and len(value) <= MAX_COHORT and value.isprintable()


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One problem to play: which environment, from which seed. Equal tasks start in the same state.

    Raises ValueError for an option that no wire takes, and where the option `cohort` names none.
    """

    env: str
    """Dotted path of the environment class, `package.module:Class`."""
    seed: int
    split: Split
    options: dict[str, OptionValue] = {}
    """Keyword arguments of the environment's constructor, and `cohort`, which it need not know."""
    env_name: str = ""
    """What the run calls the environment; "" where it plays one only and has no name for it."""

    def __post_init__(self) -> None:
        check_options(self.options)

    @property
    def cohort(self) -> str:
        """What the options say, "" where they say nothing; the environment's word at reset counts more."""
        return str(self.options.get("cohort", ""))


class VersionSpan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Response tokens `start:end` were sampled by the weights of policy `version`."""

    version: int
    start: int
    end: int


class TurnFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A turn but for its tokens."""

    versions: list[VersionSpan]
    """Covers the response without gap or overlap."""
    anchor: str
    """Canonical key of the state the turn started in: no step counter, no history."""
    next_anchor: str
    action: str | None
    """Canonical action as the environment understood it; None if the response held no valid action."""
    reward: float
    progress: float | None = None
    """Share of the way to the goal after this turn, in [0, 1], where the environment knows it."""
    tool: dict[str, Any] | None = None
    """Facts about a tool call, as the environment reports them; None where there was none."""
    started_s: float = 0.0
    """Seconds from the episode's start until the engine was asked."""
    generate_s: float = 0.0
    """Seconds that the engine took."""
    env_s: float = 0.0
    """Seconds that the environment took."""
    stopped: bool = True
    """Whether the response ended by itself; False where it was cut at its length limit."""
    lineage: int = 0
    """Which conversation of its episode it belongs to, counted from 0 in the order in which they began."""
    parent_lineage: int | None = None
    """Where it begins a lineage: the one it turned away from, or that was under way; None for the first."""


class Turn(TurnFacts, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One exchange: the policy saw `prompt_ids`, sampled `response_ids`, and the environment moved to `next_anchor`."""

    prompt_ids: Sequence[int]
    """Of an episode that was decoded, a view of what its turns share; nobody changes them."""
    response_ids: list[int]
    logprobs: list[float]
    """`[len(response_ids)]`, as the engine returned them when it sampled."""

    def __post_init__(self) -> None:
        n = len(self.response_ids)
        if n == 0 or not self.prompt_ids:
            raise ValueError("a turn needs at least one prompt token and one response token")
        if len(self.logprobs) != n:
            raise ValueError(f"{len(self.logprobs)} log-probs for {n} response tokens")
        if not all(map(math.isfinite, self.logprobs)):
            raise ValueError("a log-prob is not finite")
        if not math.isfinite(self.reward):
            raise ValueError(f"reward is {self.reward}, not a finite number")
        edges = [0] + [span.end for span in self.versions]
        if [span.start for span in self.versions] != edges[:-1] or edges[-1] != n:
            raise ValueError(f"version spans do not cover the {n} response tokens: {self.versions}")

    def is_continued_by(self, prompt_ids: Sequence[int]) -> bool:
        """Whether `prompt_ids` begins, token by token, with this turn's prompt and response."""
        start, end = len(self.prompt_ids), len(self.prompt_ids) + len(self.response_ids)
        return prompt_ids[start:end] == self.response_ids and prompt_ids[:start] == self.prompt_ids


class TrajectoryFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A finished episode but for its turns."""

    task: Task
    group_id: str
    index: int
    """Position in the group, 0 .. group size - 1."""
    outcome: Outcome
    started_at: float = 0.0
    """Unix time at which it began, by its worker's clock. For people: nothing computes with it."""
    seconds: float = 0.0
    cohort: Cohort = ""
    """As the environment said at reset, else as the task's options say."""
    success_reported: bool = True
    """Whether the environment said at any turn if the task is solved, and meant it to be learnt from. Where it did not,
    the outcome is for people: what the environment says to them, else the sign of the sum of the rewards."""
    context_full: bool = False
    """Whether it ended because the engine's context had no room for its next prompt and a response."""


class Trajectory(TrajectoryFacts, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One finished episode. `group_id` and `index` name it: an episode that is played again keeps its name."""

    turns: list[Turn]

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError("a trajectory needs at least one turn")
        check_rewards(turn.reward for turn in self.turns)

    @property
    def cohort_name(self) -> str:
        """Its cohort under the name of its environment; "" if it has neither."""
        return _cohort_name(self.task, self.cohort)

    @property
    def reward(self) -> float:
        """Undiscounted return: the sum of the turns' rewards."""
        return math.fsum(turn.reward for turn in self.turns)

    @property
    def oldest_version(self) -> int:
        """Smallest policy version that sampled any of its tokens."""
        return min(span.version for turn in self.turns for span in turn.versions)

    @property
    def newest_version(self) -> int:
        """Largest policy version that sampled any of its tokens."""
        return max(span.version for turn in self.turns for span in turn.versions)

    @property
    def num_tokens(self) -> int:
        """Number of tokens the policy sampled."""
        return sum(len(turn.response_ids) for turn in self.turns)


class Failure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An episode that could not be finished. It carries no reward, so it cannot vote in a baseline."""

    task: Task
    group_id: str
    index: int
    boundary: Boundary
    error: str
    """Class name of what was raised."""
    message: str
    turn: int = 0
    """How many turns had been played."""
    started_at: float = 0.0
    """As in `Trajectory`."""
    seconds: float = 0.0
    cohort: Cohort = ""
    """As in `Trajectory`; by the options alone where the environment did not get as far as its reset."""

    @property
    def cohort_name(self) -> str:
        """As in `Trajectory`."""
        return _cohort_name(self.task, self.cohort)


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All surviving trajectories of one task from one start: the unit of replay and of comparison."""

    group_id: str
    task: Task
    trajectories: list[Trajectory]

    def __post_init__(self) -> None:
        strangers = [t.index for t in self.trajectories if t.group_id != self.group_id or t.task != self.task]
        if strangers:
            raise ValueError(f"trajectories {strangers} do not belong to group {self.group_id}")
        indices = [t.index for t in self.trajectories]
        if len(set(indices)) != len(indices):
            raise ValueError(f"group {self.group_id} holds an index twice: {sorted(indices)}")


def _cohort_name(task: Task, cohort: str) -> str:
    return "/".join(filter(None, (task.env_name, cohort)))
