"""The interface of credit assignment: a group of trajectories goes in, one advantage per turn comes out.

A strategy is pure, deterministic arithmetic on one whole group, run before any split over ranks or micro-batches. It
sees states, actions and rewards, never tokens; what it returns is a constant for the loss. It does not decide which
groups are trained on (`milepost.learner.credit.filter`), nor how a turn's advantage reaches that turn's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, Self, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from milepost.envs.types import Group, Outcome, Trajectory, Turn, check_rewards

Floats = NDArray[np.float64]

Need = Literal["critic", "entropy", "history_gain", "progress"]
"""What a strategy reads beyond states, actions and rewards; each names where the fields of `CreditTurn` come from."""

Scaling = Literal["unit_rms", "whiten_turns", "whiten_tokens"]
"""How a batch of totals is brought to the scale of the loss; see `milepost.learner.credit.scaling`."""

INVALID: Final = "<invalid>"
"""The action of every turn whose response held no valid action. A valid action of this name is `escaped`."""


class CreditTurn(msgspec.Struct, frozen=True):
    """One transition. Raises ValueError if `invalid` and `action` disagree or a number is not finite."""

    anchor: str
    """Canonical key of the state the turn started in."""
    action: str
    """Canonical action, or `INVALID`."""
    next_anchor: str
    reward: float
    invalid: bool
    num_tokens: int
    """Tokens the policy sampled in this turn, at least 1."""
    progress: float | None = None
    """Share of the way to the goal after the turn, in [0, 1], where the environment knows it."""
    entropy: float | None = None
    """Mean entropy of those tokens in nats, where the learner computed it."""
    history_gain: float | None = None
    """Mean log-prob of those tokens with goal and history in the context less without them, in nats."""
    value: float | None = None
    """Value estimate of a critic before the turn's first token, where there is a critic."""
    token_values: tuple[float, ...] | None = None
    """Value estimates of a critic before each of the turn's tokens, `[num_tokens]`; the first is `value`."""

    def __post_init__(self) -> None:
        if self.invalid != (self.action == INVALID):
            raise ValueError(
                f"action {self.action!r} with invalid={self.invalid}: exactly invalid turns use {INVALID!r}"
            )
        if not math.isfinite(self.reward):
            raise ValueError(f"reward is {self.reward}, not a finite number")
        if self.num_tokens < 1:
            raise ValueError(f"num_tokens is {self.num_tokens}; a turn holds at least one sampled token")
        estimates = [x for x in (self.progress, self.entropy, self.history_gain, self.value) if x is not None]
        if not all(map(math.isfinite, (*estimates, *(self.token_values or ())))):
            raise ValueError("progress, entropy, history_gain or a value is not a finite number")
        if self.token_values is not None and len(self.token_values) != self.num_tokens:
            raise ValueError(f"{len(self.token_values)} token_values for {self.num_tokens} tokens")


@dataclass(frozen=True, slots=True)
class CreditTrajectory:
    """A finished episode.

    Raises ValueError without turns, for rewards beyond `check_rewards`, or where a turn does not start where the last
    one ended.
    """

    outcome: Outcome
    turns: tuple[CreditTurn, ...]
    success_reported: bool = True
    """As in `Trajectory`: whether the environment said if the task is solved."""

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError("a trajectory needs at least one turn")
        check_rewards(turn.reward for turn in self.turns)
        for t in range(1, len(self.turns)):
            ended, started = self.turns[t - 1].next_anchor, self.turns[t].anchor
            if ended != started:
                raise ValueError(
                    f"turn {t - 1} ends in state {ended!r} but turn {t} starts in {started!r}; "
                    "the environment must report the same key for one state"
                )

    @property
    def reward(self) -> float:
        """Undiscounted return without penalties."""
        return math.fsum(turn.reward for turn in self.turns)

    @property
    def num_invalid(self) -> int:
        """Number of turns without a valid action."""
        return sum(turn.invalid for turn in self.turns)


@dataclass(frozen=True, slots=True)
class PastTransition:
    """A transition of earlier groups of the task. Raises ValueError unless `count` is positive and finite."""

    anchor: str
    action: str
    target: str | None
    """The state it led to; None where the episode ended."""
    won: bool
    """Whether it ended in success; False where it did not end."""
    count: float
    """How often it was seen, less what has faded since."""

    def __post_init__(self) -> None:
        if not (self.count > 0 and math.isfinite(self.count)):
            raise ValueError(f"count of a past transition is {self.count}; it must be positive and finite")


@dataclass(frozen=True, slots=True)
class CreditGroup:
    """All surviving trajectories of one task from one start. Raises ValueError if there are none."""

    task_id: str
    trajectories: tuple[CreditTrajectory, ...]
    history: tuple[PastTransition, ...] = ()
    """What earlier groups of the same task met; enriches transition graphs, is never trained on."""

    def __post_init__(self) -> None:
        if not self.trajectories:
            raise ValueError(f"group {self.task_id} holds no trajectory; credit needs at least one")

    @classmethod
    def from_walks(cls, *walks: str, success_reported: bool = True, **fields: Sequence[Any]) -> Self:
        """A group spelt as text, for worked examples: `A x B y C success` is two turns, from A by x to B by y to C.

        The last turn of a success has reward 1, every other one 0, and a turn has one token, unless `fields` says more:
        a field of `CreditTurn` -> its values for all turns, walk after walk. Raises ValueError for a walk that does not
        alternate, an outcome that is none, and fields of another length.

        >>> group = CreditGroup.from_walks("A x B p B success", "A y C failure", entropy=[0.1, 0.2, 0.3])
        >>> [(t.outcome, t.reward, [turn.entropy for turn in t.turns]) for t in group.trajectories]
        [('success', 1.0, [0.1, 0.2]), ('failure', 0.0, [0.3])]
        """
        trajectories = [_walk(walk) for walk in walks]
        total = sum(len(trajectory.turns) for trajectory in trajectories)
        if wrong := [name for name, values in fields.items() if len(values) != total]:
            raise ValueError(f"{', '.join(wrong)}: give one value for each of the {total} turns")
        rows = iter([{name: values[k] for name, values in fields.items()} for k in range(total)])
        return cls(
            "g",
            tuple(
                CreditTrajectory(
                    t.outcome,
                    tuple(msgspec.structs.replace(turn, **next(rows)) for turn in t.turns),
                    success_reported,
                )
                for t in trajectories
            ),
        )

    @property
    def reports_success(self) -> bool:
        """Whether outcomes can be gone by: somebody was told, and so was everyone whose episode was not cut off."""
        told = [t.success_reported for t in self.trajectories]
        ended = [t.success_reported for t in self.trajectories if t.outcome != "truncated"]
        return any(told) and all(ended)

    @property
    def returns(self) -> Floats:
        """`[G]`: undiscounted return of each trajectory, without penalties."""
        return np.array([trajectory.reward for trajectory in self.trajectories], dtype=np.float64)

    def penalties(self, invalid_penalty: float) -> Floats:
        """`[G]`: `invalid_penalty` for each invalid turn of each trajectory.

        >>> group = CreditGroup.from_walks("A x B success", "A <invalid> A <invalid> A failure")
        >>> group.penalties(0.25).tolist()
        [0.0, 0.5]
        """
        return np.array([invalid_penalty * t.num_invalid for t in self.trajectories], dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Credit:
    """Advantages of one group of G trajectories with T_i turns each, and what they were made of."""

    traj_adv: Floats
    """Trajectory advantages `[G]`, unweighted."""
    step_adv: tuple[Floats, ...]
    """Step advantages, G arrays `[T_i]`, unweighted."""
    coverage: tuple[NDArray[np.int8], ...]
    """G arrays `[T_i]` of 0 and 1: 1 where the step advantage rests on a comparison or an estimate of its own."""
    total: tuple[Floats, ...]
    """Total advantages, G arrays `[T_i]`: those the loss uses."""
    state_value: dict[str, float]
    """Estimated value of every state the group acted in; empty for strategies that estimate none."""
    diagnostics: dict[str, float]
    token_total: tuple[tuple[Floats, ...], ...] | None = None
    """Token advantages, G tuples of T_i arrays `[num_tokens]`: used instead of `total` where a strategy has them."""
    value_targets: tuple[tuple[Floats, ...], ...] | None = None
    """Value targets, G tuples of T_i arrays: what the critic should have said before a turn's first n >= 1 tokens."""


class Strategy(Protocol):
    """Turns a group into advantages. Invariant under reordering of the trajectories; every output is finite."""

    @property
    def requires(self) -> frozenset[Need]:
        """What it reads beyond states, actions and rewards; checked when a run starts."""
        ...

    @property
    def scaling(self) -> Scaling:
        """How its totals are brought to one scale over a batch."""
        ...

    def assign(self, group: CreditGroup) -> Credit:
        """Advantages of every turn of `group`.

        Raises:
            ValueError: a turn lacks a field that the strategy requires; names group, trajectory and turn.
        """
        ...


def escaped(action: str) -> str:
    r"""The name of a valid action: itself, or with one more backslash where it would read as `INVALID` or its escape.

    >>> print(escaped("left"), escaped("<invalid>"), escaped(r"\<invalid>"))
    left \<invalid> \\<invalid>
    """
    return f"\\{action}" if action.lstrip("\\") == INVALID else action


def from_group(group: Group) -> CreditGroup:
    """The part of a recorded group that credit is computed from.

    Raises:
        ValueError: the group is empty, or a trajectory's states do not form a chain; names group and trajectory.

    >>> from milepost.envs.types import Task, VersionSpan
    >>> turn = Turn(
    ...     prompt_ids=[1], response_ids=[2], logprobs=[-0.5], versions=[VersionSpan(version=0, start=0, end=1)],
    ...     anchor="A", action=None, next_anchor="A", reward=0.0,
    ... )
    >>> task = Task(env="", seed=0, split="train")
    >>> whole = Trajectory(task=task, group_id="g", index=0, turns=[turn], outcome="failure")
    >>> from_group(Group(group_id="g", task=task, trajectories=[whole])).trajectories[0].turns[0].action
    '<invalid>'
    """
    trajectories = []
    for trajectory in group.trajectories:
        try:
            trajectories.append(_from_trajectory(trajectory))
        except ValueError as error:
            raise ValueError(f"group {group.group_id}, trajectory {trajectory.index}: {error}") from error
    return CreditGroup(task_id=group.group_id, trajectories=tuple(trajectories))


def _walk(walk: str) -> CreditTrajectory:
    """The trajectory that `anchor action anchor ... outcome` spells."""
    words = walk.split()
    outcomes: dict[str, Outcome] = {outcome: outcome for outcome in get_args(Outcome)}
    if not words or len(words) % 2 or words[-1] not in outcomes:
        raise ValueError(f"walk {walk!r}: anchors and actions alternate, then one of {', '.join(outcomes)}")
    moves = [words[start : start + 3] for start in range(0, len(words) - 3, 2)]
    rewards = [0.0] * (len(moves) - 1) + [float(words[-1] == "success")]
    turns = [
        CreditTurn(anchor, action, next_anchor, reward, invalid=action == INVALID, num_tokens=1)
        for (anchor, action, next_anchor), reward in zip(moves, rewards, strict=False)
    ]
    return CreditTrajectory(outcomes[words[-1]], tuple(turns))


def _from_trajectory(trajectory: Trajectory) -> CreditTrajectory:
    turns = tuple(_from_turn(turn) for turn in trajectory.turns)
    return CreditTrajectory(trajectory.outcome, turns, trajectory.success_reported)


def _from_turn(turn: Turn) -> CreditTurn:
    return CreditTurn(
        anchor=turn.anchor,
        action=INVALID if turn.action is None else escaped(turn.action),
        next_anchor=turn.next_anchor,
        reward=turn.reward,
        invalid=turn.action is None,
        num_tokens=len(turn.response_ids),
        progress=turn.progress,
    )
