"""The pool of rollout workers as Ray actors: it replaces those that die, hang or stop answering.

When a worker's process is lost its leases end at once and others play its groups again under the same names: nothing is
lost or counted twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError

from milepost.cluster.base.deadline import while_it_goes_on
from milepost.cluster.base.exits import DependencyLost, WatchdogExpired
from milepost.cluster.pools.engines import last_line
from milepost.cluster.pools.worker_process import WorkerActor, WorkerSpec
from milepost.cluster.replay.ledger import Ledger
from milepost.envs.types import Failure, Task, Trajectory

logger = logging.getLogger(__name__)
_START_UP_S = 60.0
_ANSWER_S = 5.0


@dataclass(slots=True)
class _Slot:
    name: str
    handle: Any
    running: asyncio.Future[int] | None = None
    pulse: asyncio.Future[int] | None = None
    asked_at: float = 0.0
    engines: list[Any] = field(default_factory=list)
    """Those it was told of."""
    playing: asyncio.Future[list[Trajectory | Failure]] | None = None
    """Episodes outside the ledger; it is not retired before they have ended."""


class WorkerPool:
    """All workers of a run."""

    def __init__(self, spec: WorkerSpec, ledger: Ledger, engines: list[Any]) -> None:
        self._spec = spec
        self._ledger = ledger
        self._engines = engines
        self._spawned = 0
        self._rolling = False
        self.restarts = 0
        self._slots = [self._spawn() for _ in range(spec.actors.num_workers)]

    def _spawn(self) -> _Slot:
        actor = ray.remote(WorkerActor).options(
            num_cpus=1, max_concurrency=1000, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}}
        )
        self._spawned += 1
        name = f"worker-{os.getpid()}-{self._spawned}"  # unique over resumptions: leases carry it
        slot = _Slot(name, actor.remote(self._spec, name, self._engines), engines=self._engines)
        if self._rolling:
            slot.running = asyncio.ensure_future(slot.handle.run.remote())
        return slot

    async def play(self, tasks: Sequence[Task], stall_timeout_s: float) -> list[Trajectory | Failure]:
        """Play tasks once each, outside the ledger, spread over the workers; what a lost worker had is played again.

        Raises WatchdogExpired where no episode ends for `stall_timeout_s`, DependencyLost where too many workers are
        lost.
        """
        results: list[Trajectory | Failure] = []
        try:
            work = self._play_all(list(enumerate(tasks)), results)
            await while_it_goes_on(work, self._played, stall_timeout_s=stall_timeout_s)
        except TimeoutError:
            raise WatchdogExpired(
                f"evaluation: no episode ended for {stall_timeout_s:g} s; {len(tasks)} were to be played"
            ) from None
        return results

    async def _play_all(self, tasks: list[tuple[int, Task]], results: list[Trajectory | Failure]) -> None:
        while tasks:
            tasks = await self._play_once(tasks, results)

    async def _played(self) -> int:
        """Episodes that the workers have ended outside the ledger; one that does not answer has none."""
        asked = [asyncio.ensure_future(slot.handle.played.remote()) for slot in self._slots]
        answered, _ = await asyncio.wait(asked, timeout=_ANSWER_S)
        return sum(call.result() for call in answered if call.exception() is None)

    async def _play_once(
        self, tasks: list[tuple[int, Task]], results: list[Trajectory | Failure]
    ) -> list[tuple[int, Task]]:
        """Add what was played to `results`; returns the tasks of lost workers, which were replaced."""
        concurrency = self._spec.actors.concurrent_groups * self._spec.group_size
        slots, left = list(self._slots), []
        parts = [tasks[i :: len(slots)] for i in range(len(slots))]
        for slot, part in zip(slots, parts, strict=True):
            slot.playing = asyncio.ensure_future(slot.handle.play.remote(part, concurrency))
        answers = await asyncio.gather(*(slot.playing for slot in slots if slot.playing), return_exceptions=True)
        for index, (slot, part, answer) in enumerate(zip(slots, parts, answers, strict=True)):
            if not isinstance(answer, BaseException):
                results.extend(answer)
                continue
            if not isinstance(answer, RayActorError):
                raise answer
            left.extend(part)
            if self._slots[index] is slot:  # else `tend` has replaced it
                await self._replace(index, slot, answer)
        return left

    def roll(self) -> None:
        """Start taking groups from the ledger."""
        self._rolling = True
        for slot in self._slots:
            slot.running = asyncio.ensure_future(slot.handle.run.remote())

    async def tend(self, engines: list[Any]) -> None:
        """Replace workers that ended and tell all of them which engines are in rotation. Raises DependencyLost."""
        self._engines = engines
        for index, slot in enumerate(self._slots):
            self._feel_pulse(slot)
            is_playing = slot.playing is not None and not slot.playing.done()
            if slot.running is not None and slot.running.done() and not is_playing:
                await self._replace(index, slot, slot.running.exception())
            elif slot.engines != engines:
                slot.handle.set_engines.remote(engines)
                slot.engines = engines

    async def _replace(self, index: int, slot: _Slot, error: BaseException | None) -> None:
        reason = "retired: an environment call hung" if error is None else last_line(error)
        await self._ledger.release_owner(slot.name)
        self.restarts += 1
        if self.restarts > self._spec.actors.max_restarts:
            raise DependencyLost(f"{slot.name} ended ({reason}); actors.max_restarts is used up")
        logger.warning("%s ended (%s); replacing it", slot.name, reason)
        ray.kill(slot.handle)
        self._slots[index] = self._spawn()

    def _feel_pulse(self, slot: _Slot) -> None:
        """Kill a worker whose event loop does not turn: user code holds it and its own deadlines cannot pass."""
        limit_s = self._spec.actors.env_timeout_s + _START_UP_S
        if slot.pulse is None or slot.pulse.done():
            slot.pulse, slot.asked_at = asyncio.ensure_future(slot.handle.ping.remote()), time.monotonic()
            slot.pulse.add_done_callback(lambda pulse: pulse.cancelled() or pulse.exception())
        elif time.monotonic() - slot.asked_at > limit_s:
            logger.warning("%s did not answer within %g s; killing it", slot.name, limit_s)
            ray.kill(slot.handle)

    async def stop(self) -> None:
        """End the workers at once; the groups they leave are given out again when the run goes on."""
        for slot in self._slots:
            ray.kill(slot.handle)
            for future in (slot.running, slot.pulse):
                if future is not None and not future.cancel() and not future.cancelled():
                    future.exception()  # seen: asyncio would print what it died of, after the program's last line
        self._slots = []
