"""What calls into user code come to: late ones, counted ones, the answer of an async reward."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from milepost.actors.coroutine_thread import Overdue
from milepost.actors.resources import RolloutResources
from milepost.envs.types import Trajectory
from milepost.reward.reward import TurnText, apply

_GRACE_S = 2.0
"""In which a coroutine that is cancelled has to end."""


def overdue(what: str, limit_s: float) -> TimeoutError:
    """What is said of a call that passed its deadline."""
    return TimeoutError(f"{what} did not return within actors.env_timeout_s = {limit_s:g}")


def count_if_hung(resources: RolloutResources, job: Future[Any]) -> None:
    """Count a call that nobody waits for any more, once a call's time is over."""

    def count() -> None:
        resources.hung += job.running()

    asyncio.get_running_loop().call_later(resources.limits.env_timeout_s, count)


def ask_reward(resources: RolloutResources, trajectory: Trajectory, texts: Sequence[TurnText]) -> Any:
    """The scored trajectory, or, of an async reward, a future for `answered`. Raises RewardError."""
    assert resources.reward is not None
    scored = apply(resources.reward, trajectory, texts)
    if isinstance(scored, Trajectory):
        return scored
    return resources.coroutines.submit(scored, resources.limits.env_timeout_s)


async def answered(resources: RolloutResources, asked: Future[Any]) -> tuple[Any, BaseException | None]:
    """What an async reward returned, and what it raised, which is a TimeoutError where it was not done in time.

    One that goes on although it was cancelled is counted as hung.
    """
    limit = resources.limits.env_timeout_s
    try:
        async with asyncio.timeout(limit + _GRACE_S):
            scored, raised = await asyncio.wrap_future(asked)
    except TimeoutError:
        resources.hung += 1
        return None, overdue("reward", limit)
    return scored, overdue("reward", limit) if isinstance(raised, Overdue) else raised
