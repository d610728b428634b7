"""Rewards other than the environment's own: a function of the whole trajectory, one number per turn.

A reward is user code behind a boundary: what it raises or returns wrongly becomes one `RewardError`. It runs on
finished episodes only, and nothing here bounds its time.
"""

from __future__ import annotations

from typing import Protocol, cast

import msgspec

from milepost.envs.dotted_path import DottedPathError, resolve
from milepost.envs.plain_values import ContractError, plain_number
from milepost.envs.types import Trajectory


class RewardError(ValueError):
    """A reward cannot be loaded, raised, or returned something that is no list of finite numbers."""


class Reward(Protocol):
    """Scores the turns of a finished episode."""

    def __call__(self, trajectory: Trajectory) -> list[float]:
        """One finite reward per turn, in place of the environment's: a list, a tuple or an array."""


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
    except (Exception, SystemExit, GeneratorExit) as error:  # a user's function may raise anything
        raise RewardError(f"{where}: {type(error).__name__}: {error}") from error
    if len(getattr(values, "shape", ())) == 1:  # an array or a tensor
        values = list(values)
    if not isinstance(values, list | tuple) or len(values) != len(trajectory.turns):
        raise RewardError(f"{where}: expected a list of {len(trajectory.turns)} numbers, found {repr(values)[:80]}")
    try:
        rewards = [plain_number(value, f"turn {turn}") for turn, value in enumerate(values)]
    except ContractError as error:
        raise RewardError(f"{where}: {error}") from error
    pairs = zip(trajectory.turns, rewards, strict=True)
    turns = [msgspec.structs.replace(turn, reward=reward) for turn, reward in pairs]
    try:
        return msgspec.structs.replace(trajectory, turns=turns)
    except ValueError as error:  # the rewards together
        raise RewardError(f"{where}: {error}") from error
