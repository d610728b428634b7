"""The trajectory advantage, which most strategies add to their step advantage, and the facts every group has.

Statistics run once per trajectory, not once per turn: a long trajectory does not weigh more than a short one.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from milepost.learner.credit.assignment import CreditGroup, Floats

Baseline = Literal["grpo", "rloo", "dr_grpo"]

ROUNDING = 1e-9
"""Returns that differ by less than this share of the largest one, or of 1, differ by rounding only."""


def trajectory_advantages(rewards: Floats, *, baseline: Baseline, penalties: Floats | None = None) -> Floats:
    """Group-relative advantages: each trajectory's return compared with those of its group.

    `grpo`: (R - mean) / std with ddof=1. `rloo` (arXiv 2402.14740): R - mean of the others. `dr_grpo` (arXiv
    2503.20783): R - mean. A group of one and a group without spread get exactly 0.

    A format penalty is compared in the same way, and taken off afterwards. Ours: `grpo` divides it by the deviation of
    the returns, but by no less than `least_scale`. As published it is part of the return, and in a group of equal
    returns the deviation is then the penalty's own: one invalid turn among successes costs as much as failing.

    Args:
        rewards: `[G]` returns without penalties.
        penalties: `[G]`, what each trajectory loses; none if None.

    Returns:
        `[G]` advantages. What the penalties change of one is at most twice the largest penalty.

    >>> rewards = np.array([1.0, 0.0, 0.0, 0.0])  # mean 0.25, std 0.5
    >>> trajectory_advantages(rewards, baseline="grpo").tolist()
    [1.5, -0.5, -0.5, -0.5]
    >>> trajectory_advantages(rewards, baseline="dr_grpo").tolist()
    [0.75, -0.25, -0.25, -0.25]
    >>> trajectory_advantages(np.ones(2), baseline="grpo", penalties=np.array([0.25, 0.0])).tolist()  # +-0.125 / 0.5
    [-0.25, 0.25]
    """
    advantages = _less_baseline(rewards, baseline)
    lost = np.zeros(len(rewards)) if penalties is None else _less_baseline(penalties, baseline)
    if baseline == "grpo":
        std = reward_std(rewards)
        advantages = advantages / (std or 1.0)
        lost = lost / max(std, float(least_scale(np.max(np.abs(rewards)))))
    difference: Floats = advantages - lost
    return difference


def least_scale(largest: Floats) -> Floats:
    """The smallest deviation that a penalty is divided by: of peers half of which got the largest return, half nothing.

    Args:
        largest: largest magnitude of the returns; below 1 it counts as 1, the return that a penalty is meant for.

    >>> least_scale(np.array([0.0, 1.0, 10.0])).tolist()
    [0.5, 0.5, 5.0]
    """
    scale: Floats = 0.5 * np.maximum(1.0, largest)
    return scale


def _less_baseline(values: Floats, baseline: Baseline) -> Floats:
    n = len(values)
    if not has_spread(values):
        return np.zeros(n)
    deviation: Floats = values - math.fsum(values) / n
    return deviation * (n / (n - 1)) if baseline == "rloo" else deviation


def reward_std(rewards: Floats) -> float:
    """Standard deviation (ddof=1) of `[G]` returns; exactly 0 for a group of one or without spread.

    >>> reward_std(np.array([1.0, 0.0, 0.0, 0.0]))  # sqrt(0.75 / 3)
    0.5
    """
    if not has_spread(rewards):
        return 0.0
    n = len(rewards)
    # Exact summation makes the result independent of the trajectories' order.
    mean = math.fsum(rewards) / n
    return math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / (n - 1))


def has_spread(rewards: Floats) -> bool:
    """Whether `[G]` returns differ by more than rounding.

    >>> has_spread(np.array([0.3, 0.1 + 0.2])), has_spread(np.array([0.3, 0.4]))
    (False, True)
    """
    return bool(np.ptp(rewards) > ROUNDING * max(1.0, float(np.max(np.abs(rewards)))))


def outcome_diagnostics(group: CreditGroup) -> dict[str, float]:
    """What a dashboard wants of any group: success rate, reward mean and spread (un-penalised), invalid turns.

    >>> outcome_diagnostics(CreditGroup.from_walks("A x B success", "A <invalid> A x B success"))
    {'success_rate': 1.0, 'reward_mean': 1.0, 'reward_std': 0.0, 'invalid_share': 0.3333333333333333}
    """
    rewards = group.returns
    num_turns = sum(len(trajectory.turns) for trajectory in group.trajectories)
    return {
        "success_rate": sum(t.outcome == "success" for t in group.trajectories) / len(group.trajectories),
        "reward_mean": math.fsum(rewards) / len(rewards),
        "reward_std": reward_std(rewards),
        "invalid_share": sum(t.num_invalid for t in group.trajectories) / num_turns,
    }
