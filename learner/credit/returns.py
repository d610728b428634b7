"""Discounted returns-to-go: what a turn went on to earn in its own trajectory, penalties of the turn included.

It is the return of one realised future, not an estimate of a state's value.
"""

from __future__ import annotations

import numpy as np

from milepost.learner.credit.assignment import CreditGroup, Floats


def discounted_returns(group: CreditGroup, *, gamma: float, invalid_penalty: float) -> Floats:
    """Returns-to-go `[N]` over `flat_turns`: sum_{k>=t} gamma^(k-t) r_k - invalid_penalty * [turn t is invalid].

    The penalty is taken once, from the return of the invalid turn, and is not discounted into the turns before it, as
    in GiGPO (arXiv 2505.10978): they did nothing wrong.

    >>> group = CreditGroup.from_walks("A x A <invalid> A x B success")
    >>> discounted_returns(group, gamma=0.5, invalid_penalty=0.25).tolist()
    [0.25, 0.25, 1.0]
    """
    returns: list[float] = []
    for trajectory in group.trajectories:
        rest = 0.0
        backwards = []
        for turn in reversed(trajectory.turns):
            rest = turn.reward + gamma * rest
            backwards.append(rest - invalid_penalty * turn.invalid)
        returns += reversed(backwards)
    return np.array(returns, dtype=np.float64)
