"""The pool of rollout workers as Ray actors: it replaces those that die, hang or stop answering.

When a worker's process is lost its leases end at once and others play its groups again under the same names: nothing is
lost or counted twice.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError

from milepost.cluster.base.deadline import while_it_goes_on
from milepost.cluster.base.exits import DependencyLost, WatchdogExpired
from milepost.cluster.base.remains import MARK
from milepost.cluster.base.restarts import RestartBudget
from milepost.cluster.hosts.places import Place
from milepost.cluster.hosts.ray_start import last_line
from milepost.cluster.pools.engines import Rotation
from milepost.cluster.pools.pulse import Pulse
from milepost.cluster.pools.worker_process import WorkerActor, WorkerSpec
from milepost.cluster.replay.ledger import Ledger
from milepost.cluster.replay.wire import decode
from milepost.cluster.trajectories.recording import Batch
from milepost.envs.types import Failure, Task, Trajectory

logger = logging.getLogger(__name__)
_LOOK_AGAIN_S = 0.5
_ANSWER_S = 5.0
_LAST_WORDS_S = 2.0


@dataclass(slots=True)
class _Slot:
    name: str
    handle: Any
    rotation: Rotation
    """The engines that it was told of."""
    pulse: Pulse
    running: asyncio.Future[int] | None = None
    playing: asyncio.Future[list[bytes]] | None = None
    """Episodes outside the ledger; it is not retired before they have ended."""
    telling: asyncio.Future[Batch] | None = None
    """The recordings that it was asked for."""


class WorkerPool:
    """All workers of a run."""

    def __init__(
        self, spec: WorkerSpec, ledger: Ledger, rotation: Rotation, record: Callable[[Batch], None] | None, place: Place
    ) -> None:
        """`record` is given what workers tell of their episodes; None: they tell nothing."""
        self._spec = spec
        self._place = place
        self._record = record
        self._ledger = ledger
        self._rotation = rotation
        self._spawned = 0
        self._rolling = False
        self._budget = RestartBudget(spec.restarts.max_per_worker, spec.restarts.window_s)
        self._due: dict[int, float] = {}
        """When lost ones are started again. What is neither here nor in `_slots` has no restart left, or no room."""
        self._losses: dict[int, str] = {}
        """How each index lost its last worker."""
        self._roomless: dict[int, float] = {}
        """Since when those that were lost together with their host wait for another one."""
        self._slots = {index: self._spawn(index) for index in range(spec.actors.num_workers)}

    @property
    def restarts(self) -> int:
        """Replacements so far."""
        return self._budget.total

    @property
    def running(self) -> int:
        """Workers that are not waiting for their restart."""
        return len(self._slots)

    def _launch(self, name: str, index: int) -> Any:
        actor = ray.remote(WorkerActor).options(
            max_concurrency=1000,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", MARK: name}},
            **self._place.options(index),
        )
        return actor.remote(self._spec, name, index, self._rotation, records=self._record is not None)

    def _spawn(self, index: int) -> _Slot:
        self._spawned += 1
        name = f"worker-{os.getpid()}-{self._spawned}"  # unique over resumptions: leases carry it
        handle, limit_s = self._launch(name, index), self._spec.actors.env_timeout_s
        pulse = Pulse(name, handle.ping.remote, partial(ray.kill, handle), limit_s=limit_s)
        slot = _Slot(name, handle, self._rotation, pulse)
        if self._rolling:
            slot.running = asyncio.ensure_future(slot.handle.run.remote())
        return slot

    async def play(self, tasks: Sequence[tuple[int, Task]], stall_timeout_s: float) -> list[Trajectory | Failure]:
        """Play numbered tasks once each, outside the ledger, spread over the workers; what was lost is played again.

        Raises WatchdogExpired where no episode ends for `stall_timeout_s`, DependencyLost where too many workers are
        lost.
        """
        results: list[Trajectory | Failure] = []
        try:
            work = self._play_all(list(tasks), results)
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
        asked = [asyncio.ensure_future(slot.handle.played.remote()) for slot in self._slots.values()]
        answered = (await asyncio.wait(asked, timeout=_ANSWER_S))[0] if asked else set()
        return sum(call.result() for call in answered if call.exception() is None)

    async def _play_once(
        self, tasks: list[tuple[int, Task]], results: list[Trajectory | Failure]
    ) -> list[tuple[int, Task]]:
        """Add what was played to `results`; returns the tasks of lost workers, which were replaced."""
        self._start_due()
        if not self._slots:
            await asyncio.sleep(_LOOK_AGAIN_S)
            return tasks
        slots, left = list(self._slots.items()), []
        parts = [tasks[i :: len(slots)] for i in range(len(slots))]
        for (_, slot), part in zip(slots, parts, strict=True):
            slot.playing = asyncio.ensure_future(slot.handle.play.remote(part))
        answers = await asyncio.gather(*(slot.playing for _, slot in slots if slot.playing), return_exceptions=True)
        for (index, slot), part, answer in zip(slots, parts, answers, strict=True):
            if not isinstance(answer, BaseException):
                self._budget.came_up(index)
                results.extend(await asyncio.to_thread(_decoded, answer))
                continue
            if not isinstance(answer, RayActorError):
                raise answer
            left.extend(part)
            if self._slots.get(index) is slot:  # else `tend` has seen it
                await self._lose(index, slot, answer)
        return left

    def roll(self) -> None:
        """Start taking groups from the ledger."""
        self._rolling = True
        for slot in self._slots.values():
            slot.running = asyncio.ensure_future(slot.handle.run.remote())

    async def tend(self, rotation: Rotation) -> None:
        """Replace workers that ended and tell all of them which engines are in rotation. Raises DependencyLost."""
        self._rotation = rotation
        self._start_due()
        for index, slot in list(self._slots.items()):
            if slot.pulse.has_answered:
                self._budget.came_up(index)
            is_playing = slot.playing is not None and not slot.playing.done()
            if not slot.pulse.has_answered and self._place.lost_host(index) is not None:
                await self._lose(index, slot, DependencyLost("its host was lost before it started"))
            elif slot.running is not None and slot.running.done() and not is_playing:
                await self._lose(index, slot, slot.running.exception())
            elif slot.rotation != rotation:
                slot.handle.set_rotation.remote(rotation)
                slot.rotation = rotation
            self._hear(slot)

    def _hear(self, slot: _Slot) -> None:
        """Pass on what a worker has told, and ask it again."""
        if self._record is None or (slot.telling is not None and not slot.telling.done()):
            return
        if slot.telling is not None and not slot.telling.cancelled() and slot.telling.exception() is None:
            self._record(slot.telling.result())
        slot.telling = asyncio.ensure_future(slot.handle.take_recordings.remote())
        slot.telling.add_done_callback(_seen)

    async def _hear_the_last(self) -> None:
        """What ended since the workers were asked."""
        for _ in range(2):  # the answer that is under way, then what came after it
            asked = [slot.telling for slot in self._slots.values() if slot.telling is not None]
            if asked:
                await asyncio.wait(asked, timeout=_LAST_WORDS_S)
            for slot in self._slots.values():
                self._hear(slot)

    async def _lose(self, index: int, slot: _Slot, error: BaseException | None) -> None:
        """Give its groups back and replace it. Raises DependencyLost where that leaves too few workers."""
        reason = "retired: an environment call hung" if error is None else last_line(error)
        logger.warning("%s ended (%s)", slot.name, reason)
        slot.pulse.stop()
        ray.kill(slot.handle)
        del self._slots[index]
        self._losses[index] = f"{slot.name} ended ({reason})"
        await self._ledger.release_owner(slot.name)
        self._start_due()

    def _grant(self, index: int) -> str | None:
        """Have a lost worker started again; why it is not waited for any more, where it cannot be."""
        config = self._spec.restarts
        if (host := self._place.lost_host(index)) is not None:
            if index not in self._roomless:
                logger.warning("worker %d of the pool waits for room on Ray: its host %s is gone", index, host)
            since = self._roomless.setdefault(index, time.monotonic())
            if time.monotonic() - since < config.room_timeout_s:
                return None
            within = f"within restarts.room_timeout_s = {config.room_timeout_s:g}"
            return f"its host {host} is gone and Ray has no room for it {within}"
        self._roomless.pop(index, None)
        pause_s = self._budget.spend(index)
        if pause_s is None:
            return f"restarts.max_per_worker = {config.max_per_worker} in {config.window_s:g} s is used up"
        logger.warning("worker %d of the pool is started again in %g s", index, pause_s)
        self._due[index] = time.monotonic() + pause_s
        return None

    def _start_due(self) -> None:
        """Start again what was lost and has paused, or can be started again. Raises DependencyLost as `_lose`."""
        missed: dict[int, str] = {}
        for index in range(self._spec.actors.num_workers):
            if index not in self._slots and index not in self._due and (why := self._grant(index)) is not None:
                missed[index] = why
            if self._due.get(index, math.inf) <= time.monotonic():
                del self._due[index]
                self._slots[index] = self._spawn(index)
        there = self._spec.actors.num_workers - len(missed)
        if there < self._spec.restarts.min_workers:
            index, why = missed.popitem()
            raise DependencyLost(
                f"{self._losses[index]}; {why}, and {there} workers are left: milepost train --resume goes on once "
                "more can be started"
            )

    async def stop(self) -> None:
        """End the workers at once; the groups they leave are given out again when the run goes on."""
        await self._hear_the_last()
        for slot in self._slots.values():
            slot.pulse.stop()
            ray.kill(slot.handle)
            if slot.running is not None and not slot.running.cancel() and not slot.running.cancelled():
                slot.running.exception()  # seen: asyncio would print what it died of, after the program's last line
        self._slots, self._due = {}, {}


def _decoded(results: Sequence[bytes]) -> list[Trajectory | Failure]:
    return [decode(data) for data in results]


def _seen(call: asyncio.Future[Batch]) -> None:
    """A worker that ended cannot tell, and asyncio would print that nobody asked why."""
    if not call.cancelled():
        call.exception()
