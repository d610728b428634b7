"""New weights on their way from the learner to the engines, as one verified set per policy version.

Sequence: the engines pause (requests are kept) -> the weights are delivered -> digests of the engines are compared ->
the version is committed -> requests go on.

`FileDelivery`: the learner writes one file into shared memory, every engine verifies its hash before it touches its
model; the last file stays, because an engine that is replaced catches up from it. `NcclDelivery`: learner rank 0
broadcasts to all engines over vLLM's own NCCL backend (`milepost.actors.nccl`); an engine that is replaced catches up
with the next version. Nothing here survives the run: checkpoints do.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from ray.exceptions import RayError

from milepost.actors.nccl.waiting import Sent
from milepost.cluster.base.files import try_lock
from milepost.learner.timing import timed

T = TypeVar("T")
logger = logging.getLogger(__name__)
Digests = dict[str, str]
Seconds = dict[str, float]
"""Wall time by part of a transfer."""
_SHARED_MEMORY = Path("/dev/shm")
_BROADCASTS = 2
"""One that breaks is repeated once: an engine was lost, or a network had a bad moment."""


class Delivery(Protocol):
    """One policy version's weights and the way they take."""

    @property
    def version(self) -> int:
        """The policy version they are."""
        ...

    @property
    def repeatable(self) -> bool:
        """Whether a single engine can be served later."""
        ...

    async def deliver(self, engines: list[Any], timeout_s: float, seconds: Seconds) -> list[Digests | None]:
        """Pause the engines and load the weights; digests per engine, None for one that failed and stays paused.

        Notes in `seconds` what the slowest engine took to pause, load and verify.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDelivery:
    """Weights in one file that every engine reads and verifies by itself."""

    path: Path
    sha256: str
    version: int
    repeatable: ClassVar[bool] = True

    async def deliver(self, engines: list[Any], timeout_s: float, seconds: Seconds) -> list[Digests | None]:
        """As `Delivery.deliver`; engines succeed or fail one by one."""
        each: list[Seconds] = [{} for _ in engines]
        digests = await asyncio.gather(
            *(self._one(engine, timeout_s, spent) for engine, spent in zip(engines, each, strict=True))
        )
        seconds.update({part: max(spent.get(part, 0.0) for spent in each) for part in set().union(*each)})
        return list(digests)

    async def _one(self, engine: Any, timeout_s: float, seconds: Seconds) -> Digests | None:
        try:
            async with asyncio.timeout(timeout_s):
                with timed(seconds, "pause"):
                    await engine.pause.remote()
                with timed(seconds, "load"):
                    await engine.load.remote(str(self.path), self.sha256)
                with timed(seconds, "verify"):
                    digests: Digests = await engine.digests.remote()
                return digests
        except (RayError, TimeoutError) as error:
            logger.error("an engine refused version %d: %s", self.version, str(error).strip().splitlines()[-1:])
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class NcclDelivery:
    """Weights broadcast to all engines at once: one that is lost breaks it for all, and it is repeated without it."""

    send: Callable[[Sequence[Any], float], Awaitable[Sent]]
    """Joins every learner rank and the engines in one transfer, each part of it with this deadline in seconds."""
    version: int
    repeatable: ClassVar[bool] = False

    async def deliver(self, engines: list[Any], timeout_s: float, seconds: Seconds) -> list[Digests | None]:
        """As `Delivery.deliver`. Raises what means that the learner is lost."""
        with timed(seconds, "pause"):
            paused = await asyncio.gather(*(self._within(timeout_s, engine.pause.remote()) for engine in engines))
        there = [index for index, answer in enumerate(paused) if answer is not None]
        with timed(seconds, "load"):
            there = await self._broadcast(engines, there, timeout_s)
        with timed(seconds, "verify"):
            asked = [self._within(timeout_s, engines[index].digests.remote()) for index in there]
            told = dict(zip(there, await asyncio.gather(*asked), strict=True))
        return [answer[0] if (answer := told.get(index)) else None for index in range(len(engines))]

    async def _broadcast(self, engines: list[Any], there: list[int], timeout_s: float) -> list[int]:
        """Which engines hold the weights, after at most one repetition with those that survived the first attempt."""
        for _ in range(_BROADCASTS):
            if not there:
                break
            sent = await self.send([engines[index] for index in there], timeout_s)
            if sent.cause is None:
                return there
            there = [index for index, alive in zip(there, sent.alive, strict=True) if alive]
            logger.error(
                "the broadcast of version %d broke, %d engines are left: %s", self.version, len(there), sent.cause
            )
        return []

    async def _within(self, timeout_s: float, call: Awaitable[T]) -> tuple[T] | None:
        """What an engine answered, None where it is lost."""
        try:
            async with asyncio.timeout(timeout_s):
                return (await call,)
        except (RayError, TimeoutError) as error:
            logger.error("an engine was lost on the way to version %d: %s", self.version, error)
            return None


class WeightFolder:
    """Where a run's weight files lie: memory-backed, readable by this user only, locked while the driver lives.

    The lock, and no process id, tells what a killed driver left: containers share memory but not their processes.
    """

    def __init__(self, run_id: str) -> None:
        for left in _SHARED_MEMORY.glob("milepost-*-*"):
            if left.name.rpartition("-")[2].isdecimal():
                _remove_unless_held(left)
        # Two runs of one name (a resume beside a dying predecessor) must not share files.
        self.path = _SHARED_MEMORY / f"milepost-{run_id}-{os.getpid()}"
        unseen = _SHARED_MEMORY / f".{self.path.name}"  # by its own name only once it is locked
        unseen.mkdir(mode=0o700, parents=True)
        self._lock = os.open(unseen, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unseen.rename(self.path)

    def file(self, version: int) -> Path:
        """The path for the weights of `version`."""
        return self.path / f"v{version}.safetensors"

    def keep_only(self, version: int) -> None:
        """Remove the files of all other versions."""
        for file in self.path.glob("v*.safetensors"):
            if file != self.file(version):
                file.unlink()

    def close(self) -> None:
        """Give the memory back."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_unless_held(folder: Path) -> None:
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # another user's, or gone meanwhile
        return
    try:
        if try_lock(held):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(held)
