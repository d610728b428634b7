"""Generalised advantage estimation (Schulman et al., arXiv 1506.02438) on one sequence that ends.

The unit of a sequence is the caller's: turns, or the tokens of a turn. Nothing follows the last one: its next value is
0, also where a time limit cut the sequence off, because nobody estimated a value behind it.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from milepost.learner.credit.assignment import Floats


def gae(rewards: Floats, values: Floats, *, gamma: float, lam: float) -> Floats:
    """GAE: `A_t = sum_l (gamma lam)^l delta_{t+l}` with `delta_t = r_t + gamma V_{t+1} - V_t` and `V_T = 0`.

    Args:
        rewards: `[T]`.
        values: `[T]`, estimated before each of the T units.
        gamma: discount factor per unit.
        lam: GAE lambda, 0 one unit ahead, 1 the whole return.

    Returns:
        `[T]` advantages. `A + V` is what the values should have been.

    >>> gae(np.array([0.0, 1.0]), np.array([0.5, 0.5]), gamma=1.0, lam=0.5).tolist()  # deltas 0 and 0.5
    [0.25, 0.5]
    """
    deltas = rewards + gamma * np.append(values[1:], 0.0) - values
    return discounted_sums(deltas, rate=gamma * lam)


def discounted_sums(numbers: Floats, *, rate: float) -> Floats:
    """Discounted sums `[T]`: `sum_l rate^l x_{t+l}`. Of rewards with the discount as rate, these are the returns-to-go.

    >>> discounted_sums(np.array([0.0, 0.0, 1.0]), rate=0.5).tolist()
    [0.25, 0.5, 1.0]
    """
    backwards = accumulate(numbers[::-1].tolist(), lambda later, now: now + rate * later)
    return np.array(list(backwards), dtype=np.float64)[::-1]
