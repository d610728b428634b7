"""The interface of credit assignment: a group of trajectories goes in, one advantage per turn comes out.

A strategy is pure, deterministic arithmetic on one whole group, run before any split over ranks or micro-batches. It
sees states, actions and rewards, never tokens; what it returns is a constant for the loss. It does not decide which
groups are trained on (`milepost.learner.filter`), nor how a turn's advantage reaches that turn's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from milepost.envs.types import Group, Outcome, Trajectory, Turn

Floats = NDArray[np.float64]

INVALID: Final = "<invalid>"
"""The action of every turn whose response held no valid action."""


@dataclass(frozen=True, slots=True)
class CreditTurn:
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
    entropy: float | None = None
    """Mean entropy of those tokens in nats, where the learner computed it."""
    value: float | None = None
    """A critic's estimate for `anchor`, where there is a critic."""

    def __post_init__(self) -> None:
        if self.invalid != (self.action == INVALID):
            raise ValueError(
                f"action {self.action!r} with invalid={self.invalid}: exactly invalid turns use {INVALID!r}"
            )
        if not math.isfinite(self.reward):
            raise ValueError(f"reward is {self.reward}, not a finite number")
        if self.num_tokens < 1:
            raise ValueError(f"num_tokens is {self.num_tokens}; a turn holds at least one sampled token")


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
class CreditGroup:
    """All surviving trajectories of one task from one start. Raises ValueError if there are none."""

    task_id: str
    trajectories: tuple[CreditTrajectory, ...]

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
    """G arrays `[T_i]` of 0 and 1: 1 where the turn had another action of the same state to be compared with."""
    total: tuple[Floats, ...]
    """G arrays `[T_i]`: the advantage the loss uses."""
    state_value: dict[str, float]
    """Estimated value of every state the group acted in; empty for strategies that estimate none."""
    diagnostics: dict[str, float]


class Strategy(Protocol):
    """Turns a group into advantages. Invariant under reordering of the trajectories; every output is finite."""

    requires: frozenset[str]
    """Optional turn fields (`entropy`, `value`) that the strategy reads; checked when a run starts."""

    def assign(self, group: CreditGroup) -> Credit:
        """Advantages of every turn of `group`."""
        ...


class CreditConfig(BaseModel):
    """How a turn earns its advantage: `w_trajectory * trajectory advantage + w_step * step advantage`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    strategy: Literal["crbc", "starpo"] = Field(
        "crbc", description="crbc credits state transitions; starpo gives each turn its trajectory's advantage only"
    )
    baseline: Literal["grpo", "rloo", "dr_grpo"] = Field(
        "grpo", description="Trajectory advantage: grpo (R-mean)/std, rloo R-mean of the others, dr_grpo R-mean"
    )
    invalid_penalty: float = Field(0.1, ge=0, description="Taken from a trajectory's return for each invalid turn")
    w_trajectory: float = Field(1.0, ge=0, description="Weight of the trajectory advantage")
    w_step: float = Field(5.0, ge=0, description="Weight of the step advantage (crbc)")
    beta: float = Field(0.98, gt=0, lt=1, description="Discount per turn of the probability of success (crbc)")
    sigma_min: float = Field(0.1, gt=0, description="Smallest per-state scale a step advantage is divided by (crbc)")

    @model_validator(mode="after")
    def _some_weight_is_positive(self) -> Self:
        if self.w_trajectory == 0 and (self.strategy == "starpo" or self.w_step == 0):
            raise ValueError(f"strategy {self.strategy} with these weights gives every turn 0; raise w_trajectory")
        return self


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
    )


def rescale_to_unit_std(credits: Sequence[Credit], weights: Sequence[Sequence[Floats]]) -> list[Credit]:
    """Divide every `total` of a batch by the batch's standard deviation over steps; nothing is centred.

    Clipping, KL weight and learning rate then mean the same whatever `w_step` is (the pitfall of a step weight of 5).
    The deviation is the population's, taken about the weighted mean. A batch whose totals don't vary stays as it is.
    The divisor is reported as the diagnostic `batch_std`.

    Args:
        credits: one per group of the batch, N groups.
        weights: N sequences of G arrays `[T_i]`, each >= 0: how often a step counts (its tokens, 1, or 0 to leave out).

    Raises:
        ValueError: weights and credits differ in shape, or a weight is negative or not finite.
    """
    _check_weights(credits, weights)
    if not credits:
        return []
    totals = np.concatenate([x for credit in credits for x in credit.total])
    flat_weights = np.concatenate([np.asarray(w, dtype=np.float64) for group in weights for w in group])
    divisor = _std(totals, flat_weights)
    return [
        replace(
            credit,
            total=tuple(x / divisor for x in credit.total),
            diagnostics={**credit.diagnostics, "batch_std": divisor},
        )
        for credit in credits
    ]


def _std(values: Floats, weights: Floats) -> float:
    """Weighted population standard deviation; 1 where the counted values differ by no more than rounding."""
    counted = values[weights > 0]
    if counted.size == 0 or np.ptp(counted) <= 1e-9 * np.max(np.abs(counted)):
        return 1.0
    mean = np.average(values, weights=weights)
    return float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))


def _check_weights(credits: Sequence[Credit], weights: Sequence[Sequence[Floats]]) -> None:
    have = [[x.shape for x in credit.total] for credit in credits]
    given = [[np.shape(w) for w in group] for group in weights]
    if have != given:
        raise ValueError(f"weights have shapes {given} but the credits' totals have {have}")
    for group in weights:
        for w in group:
            if not np.all(np.isfinite(w)) or np.any(np.asarray(w) < 0):
                raise ValueError("a step weight is negative or not finite; use token counts, 1 or 0")
