"""What runs in the process of one inference engine: vLLM, and the calls that pool, episodes and learner make on it.

`milepost.cluster.pools.engine_pool` starts and ends the processes; `engines.py` has what episodes see of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import start_http_server

from milepost.actors.engine import Completion, EngineConfig, EngineError, SamplingConfig
from milepost.cluster.base.restarts import RestartConfig
from milepost.cluster.base.weight_folders import close_shared
from milepost.cluster.hosts.check import lacks_plug_in
from milepost.cluster.pools.stored_weights import StoredWeights, fetch

_SHORT = 16  # tokens: enough to tell by which weights they were sampled
_PARTS_OF_AN_UPDATE = 3  # fetching, loading and committing: each has `engine.update_timeout_s`


def serve_metrics() -> int:
    """Serve this process's metrics to Prometheus, vLLM's own, on a free port of the loopback interface; the port."""
    return start_http_server(0, "127.0.0.1")[0].server_port


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
    base: Path | None = None
    """The run's first policy, which adapters join; None where whole weights come."""
    sleeps: bool = False
    """Whether engines leave their GPUs to the learner's ranks while these train."""


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """What an engine says of itself when it is probed."""

    busy_s: float
    """Seconds since its start with at least one request under way and no pause."""
    unanswered: int
    """Requests in a row, up to now, that ran into `engine.request_timeout_s` while it was not paused."""
    metrics_port: int
    """Where vLLM's own metrics are served, on the loopback interface of its host."""


class EngineActor:
    """One VLLMEngine in a process of its own. It ends its process when vLLM's core dies, so that it never looks
    alive.
    """

    def __init__(self, spec: EngineSpec) -> None:
        if (lack := lacks_plug_in()) is not None:  # a host that joined after the others were looked at
            raise EngineError(f"{socket.gethostname()}: {lack}")
        from milepost.actors.vllm import VLLMEngine  # vLLM: only an engine's own process needs it, or has it

        self._engine = VLLMEngine(
            spec.model,
            spec.config.model_copy(update={"vllm": {"enable_sleep_mode": True} | spec.config.vllm})
            if spec.sleeps
            else spec.config,
            spec.sampling,
            version=spec.version,
            stop_token_ids=list(spec.stop_token_ids),
            seed=spec.seed,
        )
        self._in_flight, self._unanswered = 0, 0
        self._paused = False
        self._busy_s = 0.0
        self._since = time.monotonic()
        self._base = spec.base
        self._metrics_port = serve_metrics()
        self._fetched: set[str] = set()
        self._committed = asyncio.Condition()
        self._update_s = _PARTS_OF_AN_UPDATE * spec.config.update_timeout_s

    def _tick(self) -> None:
        now = time.monotonic()
        if self._in_flight and not self._paused:
            self._busy_s += now - self._since
        self._since = now

    async def start(self) -> int:
        """Serve one request; returns the policy version."""
        return await self._engine.start(self._base)

    async def generate(self, prompt_ids: list[int], at_most: int | None = None) -> Completion:
        """As `VLLMEngine.generate`."""
        self._tick()
        self._in_flight += 1
        try:
            completion = await self._engine.generate(prompt_ids, at_most)
        except EngineError as error:
            if self._engine.dead:
                os._exit(70)
            self._unanswered += isinstance(error.__cause__, TimeoutError) and not self._paused
            raise
        else:
            self._unanswered = 0
            return completion
        finally:
            self._tick()
            self._in_flight -= 1

    async def answer_as(self, version: int, prompt_ids: list[int]) -> Completion:
        """A short answer with the weights of `version`. TimeoutError where they do not arrive."""
        async with asyncio.timeout(self._update_s), self._committed:
            await self._committed.wait_for(lambda: self._engine.version == version)
        return await self.generate(prompt_ids, _SHORT)

    async def pause(self) -> None:
        """Freeze running requests."""
        await self._frozen(self._engine.pause())

    async def sleep(self) -> None:
        """Freeze running requests and leave the GPU to others; see `VLLMEngine.sleep`."""
        await self._frozen(self._engine.sleep())

    async def _frozen(self, call: Awaitable[None]) -> None:
        await call  # first: until its core has answered, the probe asks it, too
        self._tick()
        self._paused = True

    async def verify(self, path: str, sha256: str) -> None:
        """Verify a weight file on this host; see `VLLMEngine.verify`."""
        await self._engine.verify(path, sha256)

    async def fetch(self, weights: StoredWeights) -> str:
        """Bring weights to this host and verify them; the file they are in. See `stored_weights.fetch`."""
        self._fetched.add(weights.folder)
        return str(await asyncio.to_thread(fetch, weights))

    async def load(self, path: str) -> None:
        """Load a verified weight file; see `VLLMEngine.load`."""
        await self._engine.load(path)

    async def digests(self, version: int) -> dict[str, str]:
        """Digests of the parameters it holds; see `VLLMEngine.digests`."""
        return await self._engine.digests(version)

    async def commit(self, version: int, rollback: bool) -> int:
        """Name the loaded weights and resume; returns the version now served."""
        await self._engine.commit(version, rollback=rollback)
        self._tick()
        self._paused, self._unanswered = False, 0
        async with self._committed:
            self._committed.notify_all()
        return self._engine.version

    async def health(self) -> EngineHealth:
        """The health probe, which goes through vLLM's core: that one may have stopped while this process lives.

        A paused engine is loading weights, which has a deadline of its own.
        """
        if self._engine.dead:
            os._exit(70)
        if not self._paused:
            await self._engine.check()
        self._tick()
        return EngineHealth(busy_s=self._busy_s, unanswered=self._unanswered, metrics_port=self._metrics_port)

    async def shutdown(self) -> None:
        """End vLLM's processes in order, and give back what fetched weights take on this host."""
        self._engine.shutdown()
        for folder in self._fetched:
            close_shared(folder)

    # What `milepost.actors.nccl.sender` calls, by vLLM's names.

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

    async def shutdown_weight_transfer_engine(self) -> None:
        """Leave the transfer group, also in the middle of an update: what was received then is no set of weights."""
        with contextlib.suppress(Exception):  # vLLM keeps who is in an update, and refuses to end one that is none
            await self._engine.llm.finish_weight_update()
        await self._engine.llm.shutdown_weight_transfer_engine()
