"""Inference engines as Ray actors, the pool that keeps them alive, and the router that workers sample through.

An engine is in rotation only while it serves the published policy version: one that dies or fails an update leaves the
rotation at once, and its replacement serves after a verified refit, never before. Not promised: that a request survives
its engine; it is sampled again on another one, within its deadline.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayActorError, RayError

from milepost.actors.engine import Completion, EngineConfig, EngineError, SamplingConfig
from milepost.actors.vllm import VLLMEngine, environment
from milepost.cluster.exits import DependencyLost
from milepost.cluster.weights import WeightFile

logger = logging.getLogger(__name__)
_RETRY_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What every engine of a run is started with."""

    model: Path
    version: int
    config: EngineConfig
    sampling: SamplingConfig
    stop_token_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """An engine's own account of itself."""

    pid: int
    core_pids: tuple[int, ...]
    version: int
    in_flight: int
    busy_s: float
    """Seconds since its start during which at least one request was under way and the engine was not paused."""


class EngineActor:
    """One VLLMEngine in a process of its own. It ends its process when vLLM's core dies, so that it never looks
    alive.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._engine = VLLMEngine(
            spec.model,
            spec.config,
            spec.sampling,
            version=spec.version,
            stop_token_ids=list(spec.stop_token_ids),
            seed=spec.seed,
        )
        self._in_flight = 0
        self._paused = False
        self._busy_s = 0.0
        self._since = time.monotonic()

    def _tick(self) -> None:
        now = time.monotonic()
        if self._in_flight and not self._paused:
            self._busy_s += now - self._since
        self._since = now

    async def start(self) -> int:
        """Serve one request; returns the policy version."""
        return await self._engine.start()

    async def generate(self, prompt_ids: list[int]) -> Completion:
        """As `VLLMEngine.generate`."""
        self._tick()
        self._in_flight += 1
        try:
            return await self._engine.generate(prompt_ids)
        except EngineError:
            if self._engine.dead:
                os._exit(70)
            raise
        finally:
            self._tick()
            self._in_flight -= 1

    async def prepare(self, path: str, sha256: str) -> dict[str, str]:
        """Pause, verify, load; see `VLLMEngine.prepare`."""
        self._tick()
        self._paused = True
        return await self._engine.prepare(path, sha256)

    async def commit(self, version: int, rollback: bool) -> int:
        """Name the loaded weights and resume; returns the version now served."""
        await self._engine.commit(version, rollback=rollback)
        self._tick()
        self._paused = False
        return self._engine.version

    async def facts(self) -> EngineFacts:
        """Pid, version and load; also the health probe."""
        if self._engine.dead:
            os._exit(70)
        self._tick()
        children = psutil.Process().children(recursive=True)
        return EngineFacts(
            pid=os.getpid(),
            core_pids=tuple(child.pid for child in children),
            version=self._engine.version,
            in_flight=self._in_flight,
            busy_s=self._busy_s,
        )

    async def shutdown(self) -> None:
        """End vLLM's processes in order."""
        self._engine.shutdown()


@dataclass(slots=True)
class _Slot:
    index: int
    handle: Any
    version: int
    serving: bool = False
    restart: asyncio.Task[None] | None = None


class EnginePool:
    """All engines of a run: start, publish weights to them, probe them, replace the dead."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._slots: list[_Slot] = []
        self._published: WeightFile | None = None
        self._updating = asyncio.Lock()
        self.restarts = 0

    async def start(self) -> None:
        """Start all engines side by side. Raises DependencyLost with the cause if one does not serve in time."""
        self._slots = [_Slot(i, self._spawn(), self._spec.version) for i in range(self._spec.config.num_engines)]
        await asyncio.gather(*(self._bring_up(slot) for slot in self._slots))

    def _spawn(self) -> Any:
        gpus = self._spec.config.tensor_parallel_size if ray.cluster_resources().get("GPU") else 0
        actor = ray.remote(EngineActor).options(
            num_cpus=1,
            num_gpus=gpus,
            max_concurrency=1000,
            runtime_env={"env_vars": environment(self._spec.config)},
        )
        return actor.remote(self._spec)

    async def _bring_up(self, slot: _Slot) -> None:
        timeout = self._spec.config.start_timeout_s
        try:
            slot.version = await asyncio.wait_for(slot.handle.start.remote(), timeout)
        except TimeoutError:
            raise DependencyLost(
                f"engine {slot.index} does not serve after engine.start_timeout_s = {timeout:g}: see its log"
            ) from None
        except RayError as error:
            cause = str(error).strip().splitlines()[-1]
            raise DependencyLost(f"engine {slot.index} could not start from {self._spec.model}: {cause}") from error
        slot.serving = True

    @property
    def handles(self) -> list[Any]:
        """Engines in rotation."""
        return [slot.handle for slot in self._slots if slot.serving]

    async def publish(self, weights: WeightFile, *, rollback: bool = False) -> None:
        """Move every engine to `weights`: pause, load, compare digests, commit, resume. Failing engines are replaced.

        `rollback`: the learner went back to a checkpoint, so the version may be an older one. Raises DependencyLost
        if no engine is left in rotation.
        """
        async with self._updating:
            self._published = weights
            serving = [slot for slot in self._slots if slot.serving]
            prepared = await asyncio.gather(*(self._prepare(slot, weights) for slot in serving))
            reference = next((digests for digests in prepared if digests is not None), None)
            for slot, digests in zip(serving, prepared, strict=True):
                if digests is None or digests != reference:
                    self._quarantine(slot, f"its weights of version {weights.version} could not be verified")
            await asyncio.gather(*(self._commit(slot, weights, rollback) for slot in serving if slot.serving))
        if not self.handles and not self._replacing:
            raise DependencyLost(f"no engine took the weights of version {weights.version}")

    @property
    def _replacing(self) -> bool:
        return any(slot.restart is not None for slot in self._slots)

    async def _prepare(self, slot: _Slot, weights: WeightFile) -> dict[str, str] | None:
        call = slot.handle.prepare.remote(str(weights.path), weights.sha256)
        try:
            digests: dict[str, str] = await asyncio.wait_for(call, self._spec.config.update_timeout_s)
            return digests
        except (RayError, TimeoutError) as error:
            logger.error("engine %d refused version %d: %s", slot.index, weights.version, last_line(error))
            return None

    async def _commit(self, slot: _Slot, weights: WeightFile, rollback: bool) -> None:
        try:
            call = slot.handle.commit.remote(weights.version, rollback)
            slot.version = await asyncio.wait_for(call, self._spec.config.update_timeout_s)
        except (RayError, TimeoutError) as error:
            self._quarantine(slot, f"commit of version {weights.version} failed: {last_line(error)}")

    async def probe(self, timeout_s: float = 10) -> list[EngineFacts]:
        """Ask every engine in rotation for its facts; one that does not answer is replaced."""
        found = []
        for slot in [slot for slot in self._slots if slot.serving]:
            try:
                found.append(await asyncio.wait_for(slot.handle.facts.remote(), timeout_s))
            except RayActorError as error:
                self._quarantine(slot, f"died: {last_line(error)}")
            except TimeoutError:
                self._quarantine(slot, f"did not answer a probe within {timeout_s:g} s")
        for slot in self._slots:
            if slot.restart is not None and slot.restart.done():
                slot.restart.result()
                slot.restart = None
        return found

    def _quarantine(self, slot: _Slot, reason: str) -> None:
        slot.serving = False
        if slot.restart is not None:
            return
        self.restarts += 1
        if self.restarts > self._spec.config.max_restarts:
            raise DependencyLost(f"engine {slot.index} {reason}; engine.max_restarts is used up")
        logger.warning("engine %d out of rotation: %s; replacing it", slot.index, reason)
        ray.kill(slot.handle)
        slot.restart = asyncio.create_task(self._replace(slot))

    async def _replace(self, slot: _Slot) -> None:
        slot.handle = self._spawn()
        await asyncio.wait_for(slot.handle.start.remote(), self._spec.config.start_timeout_s)
        async with self._updating:
            slot.version = self._spec.version
            if self._published is not None:
                path, digest = str(self._published.path), self._published.sha256
                await asyncio.wait_for(slot.handle.prepare.remote(path, digest), self._spec.config.update_timeout_s)
                slot.version = await slot.handle.commit.remote(self._published.version, True)
            slot.serving = True
        logger.warning("engine %d back in rotation at version %d", slot.index, slot.version)

    async def stop(self) -> None:
        """Shut vLLM down in order, then end the actors."""
        for slot in self._slots:
            if slot.restart is not None:
                slot.restart.cancel()
            try:
                await asyncio.wait_for(slot.handle.shutdown.remote(), 10)
            except (RayError, TimeoutError) as error:
                logger.warning("engine %d did not shut down by itself: %s", slot.index, last_line(error))
            ray.kill(slot.handle)


class RoutedEngine:
    """The `Engine` that episodes see: the least loaded engine in rotation, and another one if that dies."""

    def __init__(self, handles: list[Any], *, request_timeout_s: float) -> None:
        self._load: dict[Any, int] = dict.fromkeys(handles, 0)
        self._timeout_s = request_timeout_s

    def set_handles(self, handles: list[Any]) -> None:
        """The engines now in rotation."""
        self._load = {handle: self._load.get(handle, 0) for handle in handles}

    async def generate(self, prompt_ids: list[int]) -> Completion:
        """Sample one response; retried on another engine if its engine dies. Raises EngineError at the deadline."""
        deadline = time.monotonic() + self._timeout_s
        cause = "no engine is in rotation"
        while (left := deadline - time.monotonic()) > 0:
            handle = min(self._load, key=self._load.__getitem__, default=None)
            if handle is None:
                await asyncio.sleep(_RETRY_S)
                continue
            self._load[handle] += 1
            try:
                completion: Completion = await asyncio.wait_for(handle.generate.remote(prompt_ids), left)
                return completion
            except RayActorError as error:
                cause = last_line(error)
                await asyncio.sleep(_RETRY_S)
            except TimeoutError:
                cause = "the engine did not answer"
            except RayError as error:
                raise EngineError(last_line(error)) from error
            finally:
                if handle in self._load:
                    self._load[handle] -= 1
        raise EngineError(f"no completion within {self._timeout_s:g} s: {cause}")


def last_line(error: BaseException) -> str:
    """The one line of a remote error that names its cause."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
