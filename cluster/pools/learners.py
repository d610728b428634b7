"""The learner's ranks as Ray actors, driven as one: train, write weights, checkpoint, come back after a loss.

All ranks get the same groups and do their own share (milepost.learner.loop). A rank that is lost takes the others
with it: their collectives cannot go on. They start again together from the newest checkpoint that verifies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from safetensors import SafetensorError

from milepost.actors.nccl.waiting import Sent
from milepost.cluster.base.deadline import on_a_thread
from milepost.cluster.base.exits import ConfigError, DependencyLost, Diverged, WatchdogExpired
from milepost.cluster.base.restarts import RestartBudget
from milepost.cluster.base.weight_folders import WeightFolder
from milepost.cluster.hosts.places import NoRoom, Place
from milepost.cluster.hosts.ray_start import last_line
from milepost.cluster.pools.learner_process import LearnerActor, LearnerSpec
from milepost.cluster.pools.stored_weights import StoredWeights
from milepost.cluster.pools.weights import Asked, Delivery, FileDelivery, NcclDelivery, StoredDelivery, chosen_way
from milepost.cluster.replay.wire import EncodedGroup
from milepost.learner.credit.trial import StrategyError
from milepost.learner.loop import UpdateReport
from milepost.learner.lora import LoraError
from milepost.learner.recipe import UpdateOptions
from milepost.learner.steps import DivergenceError, ParityError
from milepost.learner.zero import checkpoint

logger = logging.getLogger(__name__)
_STEP_S = 900.0
"""A step that takes so long is no reason to end a run, also after quick ones: another batch, or a busy machine. Of
several ranks, one that hangs is found by the others' collectives long before."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31)}
"""Keeps what an update frees for its next tensors: glibc gives large blocks back to the kernel at once, which clears
every page of the next one (up to a third of a rank's CPU time)."""
_START_S = 120.0
"""Of a rank's process and its models, beside what it may wait for the other ranks."""
_PARTS_OF_A_BROADCAST = 4
"""Leaving an earlier group, forming one, sending, and leaving it where it breaks: each has the engines' deadline."""
_DISK_S = 900.0
_LOOK_EVERY_S = 1.0
_SLOWEST_STEP = 5.0
_LAST_WORDS_S = 20.0
"""How long the other ranks may take to show that one of them is gone: each sees the broken exchange first."""


class LearnerLost(DependencyLost):
    """A learner process is gone; what it did after the last checkpoint is gone with it."""


class LearnerPool:
    """All ranks of the learner."""

    def __init__(self, spec: LearnerSpec, weights: WeightFolder, place: Place) -> None:
        self._spec = spec
        self._place = place
        self._weights = weights
        self._handles: list[Any] = []
        self._step_s: list[float] = []
        self._way = chosen_way(spec.transfer)
        """Of the weights, as long as the run lasts: a host that is gone now may be back for the next ones."""
        self._budget = RestartBudget(spec.restarts.max_learner, spec.restarts.window_s)

    @property
    def restarts(self) -> int:
        """How often the ranks were started again."""
        return self._budget.total

    async def start(self, loaded: Path | None = None) -> None:
        """Start every rank, on the model or on the verified checkpoint folder `loaded`.

        Raises ConfigError or DependencyLost with the cause.
        """
        spec, config = self._spec, self._spec.recipe.learner
        env = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(config.threads or 1)}
        places = [self._place.options(rank) for rank in range(config.ranks)]
        env |= {} if places[0]["num_gpus"] else {"DS_ACCELERATOR": "cpu", **ALLOCATOR}
        actor = ray.remote(LearnerActor)
        self._handles = [
            actor.options(runtime_env={"env_vars": env}, **place).remote(spec, rank)
            for rank, place in enumerate(places)
        ]
        limit = config.collective_timeout_s + _START_S
        try:
            [meeting] = await self._each(self._handles[:1], "listen", timeout_s=limit)
            await self._all("join", meeting, timeout_s=limit)
            await self.load(loaded)
        except (LearnerLost, RuntimeError, OSError) as error:
            raise DependencyLost(f"the learner could not start: {last_line(error)}") from error

    async def load(self, folder: Path | None) -> None:
        """Continue from a verified checkpoint folder; None only waits until the ranks are up."""
        await self._all("load", folder, timeout_s=self._spec.recipe.learner.collective_timeout_s + _START_S)

    async def train(
        self, groups: Sequence[EncodedGroup], version: int, options: UpdateOptions, asked: Asked
    ) -> UpdateReport:
        """One update on all ranks, which wait for what engines were `asked` before the first step.

        Raises LearnerLost, Diverged or WatchdogExpired.
        """
        limit = max(_STEP_S, _SLOWEST_STEP * median(self._step_s or [0.0]))
        started = time.monotonic()
        shared = await _for_ranks(groups)
        reports: list[UpdateReport] = await self._all("train", shared, version, options, asked, timeout_s=limit)
        self._step_s.append(time.monotonic() - started)
        return reports[0]

    async def check_parity(self, asked: Asked, version: int) -> None:
        """Wait for what engines were asked. Raises Diverged if learner and engines do not agree on it."""
        await self._all("check_parity", asked, version, timeout_s=_STEP_S)

    async def mutual_information(self, groups: Sequence[EncodedGroup]) -> float | None:
        """Of prompts and responses of `groups` under the current weights, in nats; None where there are too few."""
        shared = await _for_ranks(groups)
        found: list[float | None] = await self._all("mutual_information", shared, timeout_s=_STEP_S)
        return found[0]

    async def delivery(self, version: int) -> Delivery:
        """The current weights, on their way to the engines."""
        if self._way == "nccl":
            return NcclDelivery(send=self._broadcast, version=version)
        if self._way == "object_store":
            stored: list[StoredWeights] = await self._all("store_weights", self._weights.for_engines, timeout_s=_STEP_S)
            return StoredDelivery(stored=stored[0], version=version)
        path = self._weights.file(version)
        digests: list[str] = await self._all("write_weights", path, timeout_s=_STEP_S)
        return FileDelivery(path=path, sha256=digests[0], version=version)

    async def _broadcast(self, engines: Sequence[Any], timeout_s: float) -> Sent:
        limit = _PARTS_OF_A_BROADCAST * timeout_s + _START_S
        sent: list[Sent | None] = await self._all("broadcast", list(engines), timeout_s, timeout_s=limit)
        assert sent[0] is not None
        return sent[0]

    async def save(self, *, iteration: int, version: int, consumed: Mapping[str, str]) -> Path:
        """Write, hash and publish a checkpoint of `iteration`; returns its folder.

        Raises DependencyLost where the disk does not take it; then nothing of it is left there, and older ones are
        untouched. What a writer left that was killed is deleted first, so that no two pile up.
        """
        root, tag = self._spec.checkpoints, checkpoint.tag_of(iteration)
        facts = checkpoint.Record(
            run_id=self._spec.run_id,
            iteration=iteration,
            policy_version=version,
            config_hash=self._spec.config_hash,
            versions=checkpoint.package_versions(),
            consumed=dict(consumed),
        )
        try:
            staged = await on_a_thread(partial(_stage, root, tag), timeout_s=_DISK_S)
            await self._all("save", staged, timeout_s=_STEP_S)
            publish = partial(_publish, staged, tag, facts, keep=self._spec.keep_checkpoints)
            return await on_a_thread(publish, timeout_s=_DISK_S)
        except TimeoutError as error:
            raise DependencyLost(f"the disk of {root} did not take checkpoint {tag} within {_DISK_S:g} s") from error
        except (OSError, RuntimeError, SafetensorError, RayError) as error:
            reason = last_line(error)
            with contextlib.suppress(OSError):
                await on_a_thread(partial(checkpoint.discard_unfinished, root), timeout_s=_DISK_S)
            raise DependencyLost(f"checkpoint {tag} could not be written in {root}: {reason}; {_room(root)}") from error

    async def recover(self, loaded: Path | None) -> None:
        """End what is left of the ranks and start them again from `loaded`, once more where they do not come up.

        Raises DependencyLost once `restarts.max_learner` is used up, NoRoom where a rank's host is gone for good.
        """
        cause = "see the driver's log for the causes"
        while (pause_s := self._budget.spend(0)) is not None:
            await self.stop()
            await asyncio.sleep(pause_s)
            try:
                while not await self._starts_in_place(loaded):
                    await self.stop()
                self._budget.came_up(0)
                return
            except NoRoom:
                raise
            except DependencyLost as error:
                logger.warning("%s", error)
                cause = str(error)
        config = self._spec.restarts
        raise DependencyLost(
            f"the learner was lost; restarts.max_learner = {config.max_learner} in {config.window_s:g} s is used up; "
            f"{cause}"
        )

    async def _starts_in_place(self, loaded: Path | None) -> bool:
        """As `start`, once there is room; False where a host turns out to be gone: Ray sees that later than we do."""
        await self._place.regained()
        starting = asyncio.ensure_future(self.start(loaded))
        try:
            while not (await asyncio.wait({starting}, timeout=_LOOK_EVERY_S))[0]:
                if any(self._place.lost_host(rank) is not None for rank in range(self._spec.recipe.learner.ranks)):
                    return False
            starting.result()
            return True
        finally:
            starting.cancel()

    async def _all(self, method: str, *arguments: object, timeout_s: float) -> Any:
        """What every rank answers. Raises the cause if one fails: a lost rank before what others say of its loss."""
        return await self._each(self._handles, method, *arguments, timeout_s=timeout_s)

    async def _each(self, handles: Sequence[Any], method: str, *arguments: object, timeout_s: float) -> Any:
        calls = [asyncio.ensure_future(getattr(handle, method).remote(*arguments)) for handle in handles]
        try:
            done, waiting = await asyncio.wait(calls, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
            errors = [error for call in done if (error := call.exception()) is not None]
            if errors and waiting:
                late, _ = await asyncio.wait(waiting, timeout=_LAST_WORDS_S)
                errors += [error for call in late if (error := call.exception()) is not None]
            elif waiting:
                raise WatchdogExpired(f"the learner's {method} did not end within {timeout_s:.0f} s: a rank hangs")
            for error in sorted(errors, key=lambda error: isinstance(error, RayTaskError)):
                raise _translated(error) from error
            return [call.result() for call in calls]
        finally:
            for call in calls:
                call.cancel()

    async def stop(self) -> None:
        """End all ranks."""
        for handle in self._handles:
            ray.kill(handle)
        self._handles = []


def _translated(error: BaseException) -> BaseException:
    """What a rank's failure means for the run; other than a RayTaskError, it says that the rank is gone."""
    if not isinstance(error, RayTaskError):
        return LearnerLost(last_line(error)) if isinstance(error, RayError) else error
    cause = error.cause if isinstance(error.cause, Exception) else error
    match cause:
        case ParityError() | DivergenceError():
            return Diverged(str(cause))
        case FileNotFoundError() | LoraError():
            return ConfigError(str(cause))
        case StrategyError():
            return ConfigError(f"credit.path: {cause}")
        case MemoryError() | torch.OutOfMemoryError():
            return DependencyLost(f"the learner is out of memory: {cause}; lower learner.max_tokens_per_micro_batch")
    return cause


async def _for_ranks(groups: Sequence[EncodedGroup]) -> ray.ObjectRef[list[EncodedGroup]]:
    """The groups where every rank finds them: once, and as they came from Redis."""
    return await asyncio.to_thread(ray.put, list(groups))


def _stage(root: Path, tag: str) -> Path:
    checkpoint.discard_unfinished(root)
    return checkpoint.prepare(root, tag, writer=os.getpid())


def _publish(staged: Path, tag: str, facts: checkpoint.Record, *, keep: int) -> Path:
    path = checkpoint.publish(staged, tag, facts)
    checkpoint.prune(staged.parent, keep=keep)
    return path


def _room(folder: Path) -> str:
    free = shutil.disk_usage(folder).free / 1024**2
    return f"{free:.0f} MiB are free there: make room and go on with milepost train --resume"
