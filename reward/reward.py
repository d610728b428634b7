"""Rewards other than the environment's own: a function of the whole episode, what was said in it included.

It is called as `reward(trajectory, texts)`, with one `TurnText` for every turn of the trajectory, and may be async. It
returns one finite number for each turn (a list, a tuple or an array), or one number, which goes to the last turn while
the others get 0. A reward is user code behind a boundary: what it raises or returns wrongly becomes one `RewardError`.
It runs on finished episodes only, changes no outcome, and nothing here bounds its time.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, Protocol, cast

import msgspec

from milepost.envs.dotted_path import DottedPathError, resolve
from milepost.envs.plain_values import ContractError, plain_number
from milepost.envs.types import Trajectory


class RewardError(ValueError):
    """A reward cannot be loaded, raised, or returned what is neither a finite number nor one for each turn."""


class TurnText(msgspec.Struct, frozen=True, kw_only=True):
    """What was said in one turn, as text."""

    observation: str
    """What the environment had said before."""
    response: str
    """What the policy wrote, without special tokens; the environment's `step` got the same."""
    next_observation: str
    """What the environment answered."""


class Reward(Protocol):
    """Scores a finished episode."""

    def __call__(self, trajectory: Trajectory, texts: Sequence[TurnText]) -> object:
        """One finite number per turn, in place of the environment's, or one number for the last turn; or, from an
        `async def`, either of them awaited.
        """


def load_reward(path: str) -> Reward:
    """The function (or callable object) at `package.module:name`; raises `RewardError`."""
    try:
        found = resolve(path)
    except DottedPathError as error:
        raise RewardError(f"reward {error}") from error
    if isinstance(found, type) or not callable(found):
        raise RewardError(f"reward {path!r} is {found!r}; name a function or an instance with __call__")
    return cast(Reward, found)


def apply(
    reward: Reward, trajectory: Trajectory, texts: Sequence[TurnText]
) -> Trajectory | Coroutine[Any, Any, Trajectory]:
    """`trajectory` with its turns' rewards replaced; all else stays, the outcome too. Of an async reward: a coroutine
    of it.

    Raises `RewardError`, or the coroutine does.

    >>> async def arrived(trajectory: Trajectory, texts: Sequence[TurnText]) -> float:
    ...     return float("You have arrived" in texts[-1].next_observation)
    """
    try:
        values = reward(trajectory, texts)
    except (Exception, SystemExit, GeneratorExit) as error:  # a user's function may raise anything
        raise _raised(trajectory, error) from error
    return _awaited(values, trajectory) if inspect.isawaitable(values) else _replaced(trajectory, values)


async def _awaited(values: Awaitable[object], trajectory: Trajectory) -> Trajectory:
    try:
        found = await values
    except asyncio.CancelledError:  # its time is over
        raise
    except BaseException as error:
        raise _raised(trajectory, error) from error
    return _replaced(trajectory, found)


def _raised(trajectory: Trajectory, error: BaseException) -> RewardError:
    return RewardError(f"{_where(trajectory)}: {type(error).__name__}: {error}")


def _where(trajectory: Trajectory) -> str:
    return f"reward of trajectory {trajectory.group_id}/{trajectory.index}"


def _replaced(trajectory: Trajectory, values: Any) -> Trajectory:
    try:
        rewards = _per_turn(values, len(trajectory.turns))
        pairs = zip(trajectory.turns, rewards, strict=True)
        turns = [msgspec.structs.replace(turn, reward=reward) for turn, reward in pairs]
        return msgspec.structs.replace(trajectory, turns=turns)
    except ValueError as error:  # the contract's, or that of the rewards together
        raise RewardError(f"{_where(trajectory)}: {error}") from error


def _per_turn(values: Any, num_turns: int) -> list[float]:
    """One number per turn; raises `ContractError`."""
    if len(getattr(values, "shape", ())) == 1:  # an array or a tensor
        values = list(values)
    if isinstance(values, list | tuple) and len(values) == num_turns:
        return [plain_number(value, f"turn {turn}") for turn, value in enumerate(values)]
    wanted = f"one number, or a list of {num_turns} numbers, one for each turn"
    if isinstance(values, list | tuple):
        raise ContractError(f"expected {wanted}, found {len(values)}: {repr(values)[:80]}")
    return [0.0] * (num_turns - 1) + [plain_number(values, f"expected {wanted}; what it returned")]
