"""Calls of an episode into user code: on its thread, with deadlines, named by the boundary that an error crossed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from milepost.actors.coroutine_thread import Overdue
from milepost.actors.episode_thread import EpisodeThread
from milepost.actors.resources import RolloutResources
from milepost.envs.types import Boundary, Trajectory
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


class BoundaryError(Exception):
    """Carries the boundary that an error crossed out of an episode."""

    def __init__(self, boundary: Boundary, error: BaseException) -> None:
        super().__init__(boundary)
        self.boundary: Boundary = boundary
        self.error = error


@dataclass(slots=True)
class UserCode:
    """Calls of one episode into user code, on a thread of its own and each with a deadline."""

    resources: RolloutResources
    thread: EpisodeThread = field(default_factory=EpisodeThread)
    waits_for: str = ""
    """What the episode is waiting for, for the message at its deadline."""

    async def call(
        self,
        what: str,
        call: Callable[[], Any],
        *,
        boundary: Boundary = "env",
        gate: AbstractContextManager[object] | None = None,
    ) -> Any:
        """What `call` returns, made inside `gate`; its deadline starts with it. Raises BoundaryError."""
        loop = asyncio.get_running_loop()
        begun = asyncio.Event()

        def caught() -> tuple[Any, BaseException | None]:
            # As a value: StopIteration, SystemExit and CancelledError mean something else to asyncio than to user code.
            try:
                loop.call_soon_threadsafe(begun.set)
                return call(), None
            except BaseException as error:
                return None, error

        limit = self.resources.limits.env_timeout_s
        self.waits_for = f"a thread for {what}"
        try:
            job = self.thread.submit(caught, gate)
        except RuntimeError as error:  # the system gives no more threads
            raise BoundaryError("infra", error) from error
        try:
            await begun.wait()
            self.waits_for = what
            async with asyncio.timeout(limit):
                value, raised = await asyncio.shield(asyncio.wrap_future(job))
        except TimeoutError:
            self.resources.hung += 1
            raise BoundaryError(boundary, overdue(what, limit)) from None
        except asyncio.CancelledError:
            if not job.cancel():  # it runs, and its own time is not over
                count_if_hung(self.resources, job)
            raise
        if raised is not None:
            raise BoundaryError(boundary, raised) from raised
        return value

    async def score(self, trajectory: Trajectory, texts: Sequence[TurnText]) -> Trajectory:
        """`trajectory` with the rewards of the run's reward, where there is one. Raises BoundaryError."""
        if self.resources.reward is None:
            return trajectory
        ask = partial(ask_reward, self.resources, trajectory, texts)
        asked = await self.call("reward", ask, boundary="reward", gate=self.resources.places)
        scored, raised = (asked, None) if isinstance(asked, Trajectory) else await answered(self.resources, asked)
        if raised is not None:
            raise BoundaryError("reward", raised) from raised
        result: Trajectory = scored
        return result
