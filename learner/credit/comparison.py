"""Comparing turns with their peers: turns that stood in the same place are judged against each other.

Pure arithmetic on flat arrays over all N turns of a group, trajectory after trajectory. A turn without a peer is not
judged: its advantage is exactly 0, never its raw value over 1, and so is that of peers whose values don't differ.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from milepost.learner.credit.assignment import Credit, CreditGroup, CreditTurn, Floats
from milepost.learner.credit.baseline import least_scale, outcome_diagnostics, trajectory_advantages
from milepost.learner.credit.settings import StepSettings

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Scale = Literal["std", "none"]

ROUNDING = 1e-9
"""Values of peers that differ by less than this share of the largest one, or of 1, differ by rounding only."""


def flat_turns(group: CreditGroup) -> list[CreditTurn]:
    """All N turns of the group, trajectory after trajectory.

    >>> [turn.action for turn in flat_turns(CreditGroup.from_walks("A x B y C success", "A z B failure"))]
    ['x', 'y', 'z']
    """
    return [turn for trajectory in group.trajectories for turn in trajectory.turns]


def per_trajectory(values: Floats, group: CreditGroup) -> tuple[Floats, ...]:
    """The inverse of `flat_turns` for an array `[N]`: G arrays `[T_i]`.

    >>> group = CreditGroup.from_walks("A x B y C success", "A z B failure")
    >>> [x.tolist() for x in per_trajectory(np.array([1.0, 2.0, 3.0]), group)]
    [[1.0, 2.0], [3.0]]
    """
    ends = np.cumsum([len(trajectory.turns) for trajectory in group.trajectories])
    return tuple(np.split(values, ends[:-1]))


def labels(keys: Sequence[Hashable]) -> Ints:
    """`[N]` numbers 0, 1, ...: equal exactly where the keys are.

    >>> labels(["A", "B", "A"]).tolist()
    [0, 1, 0]
    """
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def compare(
    values: Floats, peers: Ints, *, scale: Scale, ddof: Literal[0, 1] = 1, penalties: Floats | None = None
) -> tuple[Floats, Bools]:
    """Advantage normalisation within peers: `value - mean`, divided by the standard deviation if `scale` says so.

    Penalties are compared in the same way and taken off afterwards, divided by no less than `least_scale`: the
    deviation that they alone cause would make a small penalty as large as any difference.

    Args:
        values: `[N]`.
        peers: `[N]` labels; equal labels are peers.
        ddof: 1 for the unbiased deviation, 0 for the population's.
        penalties: `[N]`, what each turn loses; none if None.

    Returns:
        `[N]` advantages and `[N]` whether there was a peer to compare with. What the penalties change of an advantage
        is at most twice the largest penalty.

    >>> advantages, judged = compare(np.array([1.0, 3.0, 7.0]), np.array([0, 0, 1]), scale="none")
    >>> advantages.tolist(), judged.tolist()  # the third turn has no peer
    ([-1.0, 1.0, 0.0], [True, True, False])
    >>> compare(np.ones(2), np.zeros(2, int), scale="std", penalties=np.array([0.25, 0.0]))[0].tolist()  # +-0.125 / 0.5
    [-0.25, 0.25]
    """
    lost = np.zeros(len(values)) if penalties is None else penalties
    order = np.lexsort((lost, values))  # sums in order of size don't depend on the trajectories' order
    advantages, judged = np.empty(len(values)), np.empty(len(values), dtype=np.bool_)
    judged[order] = (np.bincount(peers)[peers] >= 2)[order]
    advantages[order] = _compare_sorted(values[order], lost[order], peers[order], scale, ddof)
    return advantages, judged


def _compare_sorted(values: Floats, lost: Floats, peers: Ints, scale: Scale, ddof: int) -> Floats:
    deviation, lost = _deviations(values, peers), _deviations(lost, peers)
    if scale == "none":
        return deviation - lost
    squares = np.bincount(peers, weights=deviation**2)[peers]
    std = np.sqrt(squares / np.maximum(np.bincount(peers)[peers] - ddof, 1))
    difference: Floats = deviation / np.where(std > 0, std, 1.0) - lost / np.maximum(
        std, least_scale(_largest(values, peers))
    )
    return difference


def _deviations(values: Floats, peers: Ints) -> Floats:
    """`[N]` from the mean of the peers; exactly 0 for peers that differ by rounding only."""
    deviation: Floats = values - (np.bincount(peers, weights=values) / np.maximum(np.bincount(peers), 1))[peers]
    rounding = ROUNDING * np.maximum(1.0, _largest(values, peers))
    return np.where(_largest(deviation, peers) > rounding, deviation, 0.0)


def _largest(values: Floats, peers: Ints) -> Floats:
    """`[N]` largest magnitude among the peers."""
    largest = np.zeros(len(np.bincount(peers)))
    np.maximum.at(largest, peers, np.abs(values))
    each: Floats = largest[peers]
    return each


def combined(
    group: CreditGroup,
    settings: StepSettings,
    step_adv: Floats,
    covered: Bools,
    *,
    state_value: dict[str, float],
    diagnostics: dict[str, float],
) -> Credit:
    """Total advantages `w_trajectory * A_i + w_step * step_adv`, with the facts every group has.

    Args:
        step_adv: `[N]` over the turns of `flat_turns`.
        covered: `[N]`.

    >>> group = CreditGroup.from_walks("A x B success", "A y C failure")
    >>> settings = StepSettings(baseline="dr_grpo", w_trajectory=1.0, w_step=2.0)
    >>> steps, covered = np.array([0.25, -0.25]), np.array([True, True])
    >>> credit = combined(group, settings, steps, covered, state_value={}, diagnostics={})
    >>> [x.tolist() for x in credit.total]  # 0.5 + 2 * 0.25
    [[1.0], [-1.0]]
    """
    penalties = group.penalties(settings.invalid_penalty)
    traj_adv = trajectory_advantages(group.returns, baseline=settings.baseline, penalties=penalties)
    steps = per_trajectory(step_adv, group)
    return Credit(
        traj_adv=traj_adv,
        step_adv=steps,
        coverage=tuple(x.astype(np.int8) for x in per_trajectory(covered.astype(np.float64), group)),
        total=tuple(settings.w_trajectory * a + settings.w_step * s for a, s in zip(traj_adv, steps, strict=True)),
        state_value=state_value,
        diagnostics=outcome_diagnostics(group) | {"coverage": float(np.mean(covered))} | diagnostics,
    )
