"""One worker process: many episodes at once, taken as groups from a source and handed to a sink as they finish.

Promises: never more than `concurrent_groups` groups under way; a group's lease is renewed while it is played; a source
or sink that fails ends the worker loudly instead of being retried in silence here; one whose episodes do nothing but
fail slows down. When a call into user code has hung,
the worker takes no new group, finishes what it has and returns, so that its process can be replaced.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from milepost.actors.resources import RolloutResources
from milepost.envs.types import Failure, Task, Trajectory

_IDLE_S = 0.05
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0


class ActorConfig(BaseModel):
    """How episodes are played."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_workers: int = Field(1, ge=1, description="Number of rollout worker processes")
    concurrent_groups: int = Field(8, ge=1, description="Concurrent groups: how many a worker plays side by side")
    max_turns: int = Field(10, ge=1, description="Turn limit of an episode: one with more turns is truncated")
    window_turns: int = Field(
        0,
        ge=0,
        description="Context window: most turns that a prompt shows; one more, and the newer half stays. 0 keeps all",
    )
    system_prompt: str = Field("", description="System message of every conversation")
    tool_parser: str = Field(
        "",
        description="Tool parser of vLLM for calls to an environment's tools; empty takes the one that reads what the "
        "chat template writes",
    )
    reasoning_parser: str = Field(
        "", description="Reasoning parser of vLLM for thoughts before such calls; empty as for the tool parser"
    )
    env_timeout_s: float = Field(
        20, gt=0, description="Environment timeout in seconds, of one call into environment or reward"
    )
    episode_timeout_s: float = Field(300, gt=0, description="Episode timeout in seconds")
    give_up_after_s: float = Field(
        240,
        gt=0,
        description="Give-up time in seconds, after which a run ends whose episodes do nothing but fail; at most 20 "
        "until one came through",
    )
    env_threads: int = Field(
        0,
        ge=0,
        description="Environment threads per worker in a call at the same time; every episode has one. Fewer than "
        "episodes are for calls that compute long; 0 allows all, 256 at most",
    )
    max_observation_chars: int = Field(
        1_000_000, ge=1, description="Observation length limit in characters: a longer one is its environment's failure"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A group to play: which task, and which of its episodes are still missing."""

    group_id: str
    task: Task
    indices: tuple[int, ...]


class TaskSource(Protocol):
    """Where groups come from."""

    async def next_group(self) -> Ticket | None:
        """A group to play now, or None if there is none to be had yet."""
        ...

    async def renew(self, group_ids: list[str]) -> None:
        """Say that these groups are still being played."""
        ...


class TrajectorySink(Protocol):
    """Where finished episodes go."""

    async def put(self, result: Trajectory | Failure) -> None:
        """Store a result for good; waits while the buffer is full."""
        ...


class FailurePause:
    """How a worker slows down while nothing but failures comes back, so that what they need has time to come back too.

    After a group without one episode that came through it pauses, each time twice as long up to a bound, and then plays
    one group to see. The first episode that comes through ends it. An environment that fails while another one's last
    group came through is no reason to pause: the other one would wait for it.
    """

    def __init__(self) -> None:
        self._pause_s = 0.0
        self._since = -math.inf
        self._sound: set[str] = set()
        """Environments whose last group did not do nothing but fail."""

    def came_through(self, env_name: str) -> None:
        """An episode was played to its end."""
        self._pause_s = 0.0
        self._sound.add(env_name)

    def all_failed(self, env_name: str, began: float) -> None:
        """A group ended with failures only. One that began before the last pause says nothing new."""
        self._sound.discard(env_name)
        if not self._sound and began >= self._since:
            self._since = time.monotonic()
            self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)

    def allows(self, running: int, limit: int) -> bool:
        """Whether a worker that plays `running` groups of at most `limit` may begin another one."""
        return running < (1 if self._pause_s else limit) and time.monotonic() >= self._since + self._pause_s


class Play(Protocol):
    """Plays one episode; `run_episode` and `run_agent_episode` are such."""

    async def __call__(self, *, task: Task, group_id: str, index: int) -> Trajectory | Failure:
        """Never raises for what user code or an engine does."""
        ...


class Worker:
    """Plays groups until told to stop."""

    def __init__(
        self,
        resources: RolloutResources,
        play: Play,
        source: TaskSource,
        sink: TrajectorySink,
        *,
        concurrent_groups: int,
    ) -> None:
        self._resources = resources
        self._play_one = play
        self._source = source
        self._sink = sink
        self._limit = concurrent_groups
        self._running: dict[asyncio.Task[None], str] = {}
        self._pause = FailurePause()
        self._stopping = False

    def stop(self) -> None:
        """Take no new groups; `run` returns once those under way have ended."""
        self._stopping = True

    async def run(self, *, renew_every_s: float) -> int:
        """Play until stopped or until a call into user code has hung. Returns the number of calls that hung."""
        renewal = asyncio.create_task(self._renew(renew_every_s))
        try:
            while self._running or not self._closing:
                self._reap()
                if renewal.done():
                    renewal.result()
                ticket = None
                if not self._closing and self._pause.allows(len(self._running), self._limit):
                    ticket = await self._source.next_group()
                if ticket is None:
                    await self._wait()
                else:
                    self._running[asyncio.create_task(self._play(ticket))] = ticket.group_id
            return self._resources.hung
        finally:
            ending = [renewal, *self._running]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)

    @property
    def _closing(self) -> bool:
        return self._stopping or self._resources.hung > 0

    async def _play(self, ticket: Ticket) -> None:
        began, failures = time.monotonic(), 0

        async def one(index: int) -> None:
            nonlocal failures
            result = await self._play_one(task=ticket.task, group_id=ticket.group_id, index=index)
            if isinstance(result, Failure):
                failures += 1
            else:
                self._pause.came_through(ticket.task.env_name)
            await self._sink.put(result)

        async with asyncio.TaskGroup() as episodes:
            for index in ticket.indices:
                episodes.create_task(one(index))
        if failures == len(ticket.indices):
            self._pause.all_failed(ticket.task.env_name, began)

    def _reap(self) -> None:
        for task in [task for task in self._running if task.done()]:
            del self._running[task]
            task.result()

    async def _wait(self) -> None:
        if self._running:
            await asyncio.wait(self._running, timeout=_IDLE_S, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(_IDLE_S)

    async def _renew(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            if self._running:
                await self._source.renew(list(self._running.values()))
