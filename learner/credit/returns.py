"""Discounted returns-to-go: what a turn went on to earn in its own trajectory, and what it loses by its form.

It is the return of one realised future, not an estimate of a state's value.
"""

from __future__ import annotations

import numpy as np

from milepost.learner.credit.assignment import CreditGroup, Floats
from milepost.learner.credit.baseline import has_spread


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


def end_worth(group: CreditGroup) -> Floats:
    """What it is worth to end as each trajectory did, `[G]` in [0, 1].

    Where the group reports success: 1 for success and 0 for none. Elsewhere (ours) its return's place between the
    group's smallest and largest; returns that are all equal are worth 1 if they are positive, else 0.

    >>> walks = ["A x B success", "A y C success", "A z D failure"]
    >>> end_worth(CreditGroup.from_walks(*walks, reward=[0.75, 0.25, -0.25])).tolist()
    [1.0, 1.0, 0.0]
    >>> silent = CreditGroup.from_walks(*walks, reward=[0.75, 0.25, -0.25], success_reported=False)
    >>> end_worth(silent).tolist()
    [1.0, 0.5, 0.0]
    """
    if group.reports_success:
        return np.array([trajectory.outcome == "success" for trajectory in group.trajectories], dtype=np.float64)
    returns = group.returns
    if not has_spread(returns):
        return np.where(returns > 0, 1.0, 0.0)
    place: Floats = (returns - returns.min()) / np.ptp(returns)
    return place


def at_ends(group: CreditGroup, worth: Floats) -> Floats:
    """`[N]` over `flat_turns`: `worth` `[G]` of a trajectory at its last turn, 0 at all others.

    >>> at_ends(CreditGroup.from_walks("A x B y C success", "A z D failure"), np.array([1.0, 0.5])).tolist()
    [0.0, 1.0, 0.5]
    """
    lengths = [len(trajectory.turns) for trajectory in group.trajectories]
    turns = np.zeros(sum(lengths))
    turns[np.cumsum(lengths) - 1] = worth
    return turns


def turn_penalties(group: CreditGroup, *, invalid_penalty: float) -> Floats:
    """`[N]` over `flat_turns`: `invalid_penalty` where a turn held no valid action, else 0.

    Not discounted into the turns before it, as in GiGPO (arXiv 2505.10978): they did nothing wrong.

    >>> turn_penalties(CreditGroup.from_walks("A x A <invalid> A x B success"), invalid_penalty=0.25).tolist()
    [0.0, 0.25, 0.0]
    """
    return np.array([invalid_penalty * turn.invalid for t in group.trajectories for turn in t.turns], dtype=np.float64)
