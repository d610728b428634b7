"""Discounted returns-to-go: what a turn went on to earn in its own trajectory, and what it loses by its form.

It is the return of one realised future, not an estimate of a state's value.
"""

from __future__ import annotations

import numpy as np

from milepost.learner.credit.assignment import CreditGroup, Floats


def discounted_returns(group: CreditGroup, *, gamma: float) -> Floats:
    """Returns-to-go `[N]` over `flat_turns`: sum_{k>=t} gamma^(k-t) r_k.

    >>> discounted_returns(CreditGroup.from_walks("A x A y A x B success"), gamma=0.5).tolist()
    [0.25, 0.5, 1.0]
    """
    returns: list[float] = []
    for trajectory in group.trajectories:
        rest = 0.0
        backwards = []
        for turn in reversed(trajectory.turns):
            rest = turn.reward + gamma * rest
            backwards.append(rest)
        returns += reversed(backwards)
    return np.array(returns, dtype=np.float64)


def turn_penalties(group: CreditGroup, *, invalid_penalty: float) -> Floats:
    """`[N]` over `flat_turns`: `invalid_penalty` where a turn held no valid action, else 0.

    Not discounted into the turns before it, as in GiGPO (arXiv 2505.10978): they did nothing wrong.

    >>> turn_penalties(CreditGroup.from_walks("A x A <invalid> A x B success"), invalid_penalty=0.25).tolist()
    [0.0, 0.25, 0.0]
    """
    return np.array([invalid_penalty * turn.invalid for t in group.trajectories for turn in t.turns], dtype=np.float64)
