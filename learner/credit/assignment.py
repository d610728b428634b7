"""The interface of credit assignment: a group of trajectories goes in, one advantage per turn comes out.

A strategy is pure, deterministic arithmetic on one whole group, run before any split over ranks or micro-batches. It
sees states, actions and rewards, never tokens; what it returns is a constant for the loss. It does not decide which
groups are trained on (`milepost.learner.credit.filter`), nor how a turn's advantage reaches that turn's tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from milepost.envs.types import Group, Outcome, Trajectory, Turn

Floats = NDArray[np.float64]

Need = Literal["critic", "entropy", "history_gain", "progress"]
"""What a strategy reads beyond states, actions and rewards; each names where the fields of `CreditTurn` come from."""

Scaling = Literal["unit_std", "whiten_turns", "whiten_tokens"]
"""How a batch of totals is brought to the scale of the loss; see `milepost.learner.credit.scaling`."""

INVALID: Final = "<invalid>"
"""The action of every turn whose response held no valid action."""


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
    """A critic's estimate before the turn's first token, where there is a critic."""
    token_values: tuple[float, ...] | None = None
    """A critic's estimate before each of the turn's tokens, `[num_tokens]`; the first is `value`."""

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
    """A finished episode. Raises ValueError without turns, or where a turn does not start where the last one ended."""

    outcome: Outcome
    turns: tuple[CreditTurn, ...]

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError("a trajectory needs at least one turn")
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

    def penalised_rewards(self, invalid_penalty: float) -> Floats:
        """`[G]`: return of each trajectory less `invalid_penalty` for each of its invalid turns."""
        return np.array([t.reward - invalid_penalty * t.num_invalid for t in self.trajectories], dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Credit:
    """Advantages of one group of G trajectories with T_i turns each, and what they were made of."""

    traj_adv: Floats
    """`[G]`, unweighted."""
    step_adv: tuple[Floats, ...]
    """G arrays `[T_i]`, unweighted."""
    coverage: tuple[NDArray[np.int8], ...]
    """G arrays `[T_i]` of 0 and 1: 1 where the step advantage rests on a comparison or an estimate of its own."""
    total: tuple[Floats, ...]
    """G arrays `[T_i]`: the advantage the loss uses."""
    state_value: dict[str, float]
    """Estimated value of every state the group acted in; empty for strategies that estimate none."""
    diagnostics: dict[str, float]
    token_total: tuple[tuple[Floats, ...], ...] | None = None
    """G tuples of T_i arrays `[num_tokens]`: what the loss uses instead of `total`, where tokens differ in a turn."""
    value_targets: tuple[tuple[Floats, ...], ...] | None = None
    """G tuples of T_i arrays: what the critic should have said before the first n tokens of the turn, n >= 1."""


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


def from_group(group: Group) -> CreditGroup:
    """The part of a recorded group that credit is computed from.

    Raises:
        ValueError: the group is empty, or a trajectory's states do not form a chain; names group and trajectory.
    """
    trajectories = []
    for trajectory in group.trajectories:
        try:
            trajectories.append(_from_trajectory(trajectory))
        except ValueError as error:
            raise ValueError(f"group {group.group_id}, trajectory {trajectory.index}: {error}") from error
    return CreditGroup(task_id=group.group_id, trajectories=tuple(trajectories))


def _from_trajectory(trajectory: Trajectory) -> CreditTrajectory:
    return CreditTrajectory(trajectory.outcome, tuple(_from_turn(turn) for turn in trajectory.turns))


def _from_turn(turn: Turn) -> CreditTurn:
    return CreditTurn(
        anchor=turn.anchor,
        action=INVALID if turn.action is None else turn.action,
        next_anchor=turn.next_anchor,
        reward=turn.reward,
        invalid=turn.action is None,
        num_tokens=len(turn.response_ids),
        progress=turn.progress,
    )
