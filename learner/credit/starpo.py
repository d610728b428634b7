"""StarPO: every turn of a trajectory gets the trajectory's advantage within its group.

Idea: the whole interaction is the unit of optimisation, and the other rollouts of the same task are its baseline. It
can't tell the turns of one trajectory apart; strategies that can build on the same trajectory advantage.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from milepost.learner.credit.assignment import Credit, CreditConfig, CreditGroup, Floats

ROUNDING = 1e-9
"""Returns that differ by less than this share of the largest one, or of 1, differ by rounding only."""


class StarPO:
    """A[i, t] = w_trajectory * A_i, the same for all turns (StarPO, arXiv 2504.20073; GRPO, arXiv 2402.03300).

    The format penalty enters the return before normalisation, as published. Ours: the statistics run once per
    trajectory instead of once per row, so long trajectories don't weigh more, and no epsilon shrinks the result.
    """

    requires: frozenset[str] = frozenset()

    def __init__(self, config: CreditConfig) -> None:
        self._config = config

    def assign(self, group: CreditGroup) -> Credit:
        """Trajectory advantages only: step advantages and coverage are 0, no state value is estimated."""
        config = self._config
        rewards = group.penalised_rewards(config.invalid_penalty)
        traj_adv = trajectory_advantages(rewards, baseline=config.baseline)
        lengths = [len(trajectory.turns) for trajectory in group.trajectories]
        return Credit(
            traj_adv=traj_adv,
            step_adv=tuple(np.zeros(n) for n in lengths),
            coverage=tuple(np.zeros(n, dtype=np.int8) for n in lengths),
            total=tuple(np.full(n, config.w_trajectory * a) for n, a in zip(lengths, traj_adv, strict=True)),
            state_value={},
            diagnostics=outcome_diagnostics(group),
        )


def trajectory_advantages(rewards: Floats, *, baseline: Literal["grpo", "rloo", "dr_grpo"]) -> Floats:
    """Compare each trajectory's return with its group.

    `grpo`: (R - mean) / std with ddof=1. `rloo` (arXiv 2402.14740): R - mean of the others. `dr_grpo` (arXiv
    2503.20783): R - mean. A group of one and a group without spread get exactly 0.

    Args:
        rewards: `[G]` returns after penalties.

    Returns:
        `[G]` advantages.
    """
    n = len(rewards)
    if not has_spread(rewards):
        return np.zeros(n)
    deviation = rewards - math.fsum(rewards) / n
    if baseline == "grpo":
        return deviation / reward_std(rewards)
    return deviation * (n / (n - 1)) if baseline == "rloo" else deviation


def reward_std(rewards: Floats) -> float:
    """Standard deviation (ddof=1) of `[G]` returns; exactly 0 for a group of one or without spread."""
    if not has_spread(rewards):
        return 0.0
    n = len(rewards)
    # Exact summation makes the result independent of the trajectories' order.
    mean = math.fsum(rewards) / n
    return math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / (n - 1))


def has_spread(rewards: Floats) -> bool:
    """Whether `[G]` returns differ by more than rounding."""
    return bool(np.ptp(rewards) > ROUNDING * max(1.0, float(np.max(np.abs(rewards)))))


def outcome_diagnostics(group: CreditGroup) -> dict[str, float]:
    """What a dashboard wants of any group: success rate, reward mean and spread (un-penalised), invalid turns."""
    rewards = group.penalised_rewards(0.0)
    num_turns = sum(len(trajectory.turns) for trajectory in group.trajectories)
    return {
        "success_rate": sum(t.outcome == "success" for t in group.trajectories) / len(group.trajectories),
        "reward_mean": math.fsum(rewards) / len(rewards),
        "reward_std": reward_std(rewards),
        "invalid_share": sum(t.num_invalid for t in group.trajectories) / num_turns,
    }
