"""Rewards other than the environment's own: a function of the whole trajectory, one number per turn.

A reward is user code behind a boundary: what it raises or returns wrongly becomes one `RewardError`. It runs on
finished episodes only, and nothing here bounds its time.
"""

from __future__ import annotations

import math
from typing import Protocol, cast

import msgspec

from milepost.envs.dotted_path import DottedPathError, resolve
from milepost.envs.types import Trajectory


class RewardError(ValueError):
    """A reward cannot be loaded, raised, or returned something that is no list of finite numbers."""


class Reward(Protocol):
    """Scores the turns of a finished episode."""

    def __call__(self, trajectory: Trajectory) -> list[float]:
        """One finite reward per turn, in place of the environment's."""


def load_reward(path: str) -> Reward:
    """The function (or callable object) at `package.module:name`; raises `RewardError`."""
    try:
        found = resolve(path)
    except DottedPathError as error:
        raise RewardError(f"reward {error}") from error
    if isinstance(found, type) or not callable(found):
        raise RewardError(f"reward {path!r} is {found!r}; name a function or an instance with __call__")
    return cast(Reward, found)


def apply(reward: Reward, trajectory: Trajectory) -> Trajectory:
    """`trajectory` with its turns' rewards replaced; all else stays, the outcome too. Raises `RewardError`."""
    where = f"reward of trajectory {trajectory.group_id}/{trajectory.index}"
    try:
        values = reward(trajectory)
    except Exception as error:  # a user's function may raise anything
        raise RewardError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(values, list) or len(values) != len(trajectory.turns):
        raise RewardError(f"{where}: expected a list of {len(trajectory.turns)} numbers, found {repr(values)[:80]}")
    numbers = [_finite(value, f"{where}: turn {turn}") for turn, value in enumerate(values)]
    pairs = zip(trajectory.turns, numbers, strict=True)
    turns = [msgspec.structs.replace(turn, reward=number) for turn, number in pairs]
    try:
        return msgspec.structs.replace(trajectory, turns=turns)
    except ValueError as error:  # the rewards together
        raise RewardError(f"{where}: {error}") from error


def _finite(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RewardError(f"{what} must be a finite number, found {repr(value)[:80]}")
    try:
        number = float(value)
    except OverflowError:  # an int beyond all floats
        number = math.inf
    if not math.isfinite(number):
        raise RewardError(f"{what} must be a finite number, found {number}")
    return number
