"""What turns carry beyond states and actions, read with a check that it is there.

A strategy that needs a critic's values or an entropy refuses a group without them: a missing number is never a zero.
Positions in messages count from 0 within the group that credit is computed for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal

import numpy as np

from milepost.learner.credit.assignment import CreditGroup, CreditTrajectory, CreditTurn, Floats

Reading = Literal["progress", "entropy", "history_gain", "value"]

_READ: Final[dict[Reading, Callable[[CreditTurn], float | None]]] = {
    "progress": lambda turn: turn.progress,
    "entropy": lambda turn: turn.entropy,
    "history_gain": lambda turn: turn.history_gain,
    "value": lambda turn: turn.value,
}
_SOURCE: Final[dict[str, str]] = {
    "progress": "the environment must report it after every turn",
    "entropy": "the learner must compute it before credit",
    "history_gain": "the learner must compute it before credit",
    "value": "a critic must estimate it before credit",
    "token_values": "a critic must estimate them before credit",
}


def required(group: CreditGroup, reading: Reading) -> tuple[Floats, ...]:
    """G arrays `[T_i]` of one number per turn. Raises ValueError where a turn has none: group, trajectory, turn.

    >>> group = CreditGroup.from_walks("A x B y C success", "A x B failure", progress=[0.5, 1.0, 0.5])
    >>> [x.tolist() for x in required(group, "progress")]
    [[0.5, 1.0], [0.5]]
    """
    read = _READ[reading]
    arrays = []
    for i, trajectory in enumerate(group.trajectories):
        numbers = [read(turn) for turn in trajectory.turns]
        if None in numbers:
            raise missing(group, trajectory=i, turn=numbers.index(None), what=reading)
        arrays.append(np.array(numbers, dtype=np.float64))
    return tuple(arrays)


def required_token_values(group: CreditGroup) -> tuple[tuple[Floats, ...], ...]:
    """G tuples of T_i arrays `[num_tokens]`. Raises ValueError where a turn has none: group, trajectory, turn.

    >>> group = CreditGroup.from_walks("A x B success", num_tokens=[2], token_values=[(0.25, 0.5)])
    >>> [[x.tolist() for x in turns] for turns in required_token_values(group)]
    [[[0.25, 0.5]]]
    """
    values = []
    for i, trajectory in enumerate(group.trajectories):
        turns = []
        for t, turn in enumerate(trajectory.turns):
            if turn.token_values is None:
                raise missing(group, trajectory=i, turn=t, what="token_values")
            turns.append(np.array(turn.token_values, dtype=np.float64))
        values.append(tuple(turns))
    return tuple(values)


def missing(group: CreditGroup, *, trajectory: int, turn: int, what: str) -> ValueError:
    """The error for a turn that lacks `what`, a field of `CreditTurn`."""
    return ValueError(f"group {group.task_id}, trajectory {trajectory}, turn {turn}: no {what}; {_SOURCE[what]}")


def turn_rewards(trajectory: CreditTrajectory, *, invalid_penalty: float) -> Floats:
    """`[T]`: reward of each turn, less `invalid_penalty` where it held no valid action.

    >>> [walk] = CreditGroup.from_walks("A <invalid> A x B success").trajectories
    >>> turn_rewards(walk, invalid_penalty=0.1).tolist()
    [-0.1, 1.0]
    """
    return np.array([turn.reward - invalid_penalty * turn.invalid for turn in trajectory.turns], dtype=np.float64)


def mean_by_anchor(group: CreditGroup, values: tuple[Floats, ...]) -> dict[str, float]:
    """State -> mean over its visits of G arrays `[T_i]`. Exact summation makes the order of visits irrelevant.

    >>> mean_by_anchor(CreditGroup.from_walks("A x A x B success"), (np.array([0.25, 0.75]),))
    {'A': 0.5}
    """
    visits: dict[str, list[float]] = {}
    for trajectory, numbers in zip(group.trajectories, values, strict=True):
        for turn, number in zip(trajectory.turns, numbers, strict=True):
            visits.setdefault(turn.anchor, []).append(float(number))
    return {anchor: math.fsum(visits[anchor]) / len(visits[anchor]) for anchor in sorted(visits)}
