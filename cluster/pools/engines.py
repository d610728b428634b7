"""An inference engine as a Ray actor, and the router that workers sample through.

Not promised: that a request survives its engine; it is sampled again on another one, within its deadline.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError, RayError, RayTaskError

from milepost.actors.engine import Completion, EngineConfig, EngineError, SamplingConfig
from milepost.cluster.base.restarts import RestartConfig

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
    restarts: RestartConfig


def sampling_seed(run_seed: int, *, engine: int, start: int, version: int) -> int:
    """The seed in [0, 2^31) of what one started engine draws: its own, and the same for the same identity.

    Two engines of one seed answer a prompt with the same tokens: the episodes of a group would be copies.

    Args:
        run_seed: `run.seed`.
        engine: Index of the engine in its pool.
        start: How often this index was started before, in this life of the run.
        version: Policy version it starts from; a resumed run starts from another one.
    """
    identity = f"{run_seed} {engine} {start} {version}".encode()
    return int.from_bytes(hashlib.sha256(identity).digest()[:4]) >> 1


class EngineActor:
    """One VLLMEngine in a process of its own. It ends its process when vLLM's core dies, so that it never looks
    alive.
    """

    def __init__(self, spec: EngineSpec) -> None:
        from milepost.actors.vllm import VLLMEngine  # vLLM: only an engine's own process needs it, or has it

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

    async def pause(self) -> None:
        """Freeze running requests."""
        self._tick()
        self._paused = True
        await self._engine.pause()

    async def load(self, path: str, sha256: str) -> None:
        """Verify and load a weight file; see `VLLMEngine.load`."""
        await self._engine.load(path, sha256)

    async def digests(self) -> dict[str, str]:
        """vLLM's digests of the parameters it holds."""
        return await self._engine.digests()

    async def commit(self, version: int, rollback: bool) -> int:
        """Name the loaded weights and resume; returns the version now served."""
        await self._engine.commit(version, rollback=rollback)
        self._tick()
        self._paused = False
        return self._engine.version

    async def busy_s(self) -> float:
        """Seconds since its start with at least one request under way and no pause; also the health probe."""
        if self._engine.dead:
            os._exit(70)
        self._tick()
        return self._busy_s

    async def shutdown(self) -> None:
        """End vLLM's processes in order."""
        self._engine.shutdown()

    # The calls that the trainer side of vLLM's NCCL backend makes on an engine, by vLLM's names.

    async def init_weight_transfer_engine(self, request: Any) -> None:
        """Join the transfer group."""
        await self._engine.llm.init_weight_transfer_engine(request)

    async def start_weight_update(self) -> None:
        """Get ready to receive."""
        await self._engine.llm.start_weight_update()

    async def update_weights(self, request: Any) -> None:
        """Receive."""
        await self._engine.llm.update_weights(request)

    async def finish_weight_update(self) -> None:
        """Everything was received."""
        await self._engine.llm.finish_weight_update()


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
                async with asyncio.timeout(left):
                    completion: Completion = await handle.generate.remote(prompt_ids)
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
    """The one line of a remote error that names its cause; of several at once, the first."""
    cause: BaseException = error.cause if isinstance(error, RayTaskError) else error
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if cause is not error:
        return f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
