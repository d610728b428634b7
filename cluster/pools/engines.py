"""An inference engine as a Ray actor, and what the episodes of a worker ask of all of them.

Not promised: that a request survives its engine; it is sampled again on another one, within its deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import start_http_server
from ray.exceptions import RayActorError, RayError, RayTaskError

from milepost.actors.engine import Completion, Engine, EngineConfig, EngineError, SamplingConfig
from milepost.cluster.base.restarts import RestartConfig
from milepost.cluster.base.weight_folders import close_shared
from milepost.cluster.pools.stored_weights import StoredWeights, fetch

_RETRY_S = 0.2


def serve_metrics() -> int:
    """Serve this process's metrics to Prometheus, vLLM's own, on a free port of the loopback interface; the port."""
    server, _ = start_http_server(0, "127.0.0.1")
    return server.server_port


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


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """What an engine says of itself when it is probed."""

    busy_s: float
    """Seconds since its start with at least one request under way and no pause."""
    unanswered: int
    """Requests in a row, up to now, that ran into `engine.request_timeout_s` while it was not paused."""
    metrics_port: int
    """Where vLLM's own metrics are served, on the loopback interface of its host."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """The engines that answer requests, and whether one more is being started."""

    handles: list[Any]
    is_growing: bool


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
        self._unanswered = 0
        self._since = time.monotonic()
        self._metrics_port = serve_metrics()
        self._fetched: set[str] = set()

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
            completion = await self._engine.generate(prompt_ids)
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

    async def pause(self) -> None:
        """Freeze running requests."""
        await self._engine.pause()  # first: until its core has answered, the probe asks it, too
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

    async def digests(self) -> dict[str, str]:
        """vLLM's digests of the parameters it holds."""
        return await self._engine.digests()

    async def commit(self, version: int, rollback: bool) -> int:
        """Name the loaded weights and resume; returns the version now served."""
        await self._engine.commit(version, rollback=rollback)
        self._tick()
        self._paused, self._unanswered = False, 0
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


class RoutedEngines:
    """The `Engines` that a worker's episodes see: each keeps the one in rotation with the fewest episodes at its first
    prompt, and moves only where that one dies or leaves the rotation.
    """

    def __init__(self, rotation: Rotation, *, worker: int, request_timeout_s: float, start_timeout_s: float) -> None:
        """`worker` is the number of the one whose episodes these are: of engines with equally few of its episodes,
        each worker begins with another one, for it does not see what the others ask.
        """
        self.rotation = rotation
        self._worker = worker
        self.request_timeout_s = request_timeout_s
        self.start_timeout_s = start_timeout_s
        self._lost: set[Any] = set()
        """Engines that died before the rotation said so."""
        self._episodes: set[EpisodeEngine] = set()

    def set_rotation(self, rotation: Rotation) -> None:
        """The engines now in rotation."""
        self.rotation = rotation
        self._lost.clear()

    @contextlib.contextmanager
    def for_episode(self) -> Iterator[Engine]:
        """An engine for one episode, which counts as that engine's until the block ends."""
        episode = EpisodeEngine(self)
        self._episodes.add(episode)
        try:
            yield episode
        finally:
            self._episodes.remove(episode)

    def died(self, handle: Any) -> None:
        """Ask `handle` last until the rotation is set anew."""
        self._lost.add(handle)

    def keeps(self, handle: Any) -> bool:
        """Whether an episode of `handle` is to stay there."""
        return handle in self.rotation.handles and handle not in self._lost

    def least_loaded(self) -> Any:
        """Handle of the engine in rotation that has the fewest episodes; None where there is none."""
        load, handles = Counter(episode.handle for episode in self._episodes), self.rotation.handles
        first = self._worker % max(len(handles), 1)
        in_turn = handles[first:] + handles[:first]
        return min(in_turn, key=lambda handle: (handle in self._lost, load[handle]), default=None)


class EpisodeEngine:
    """The `Engine` of one episode. `handle` is the one it asks, None before its first prompt."""

    def __init__(self, engines: RoutedEngines) -> None:
        self._engines = engines
        self.handle: Any = None

    async def generate(self, prompt_ids: list[int]) -> Completion:
        """Sample one response; on another engine if its engine dies, or on the one that is being started.

        Its deadline counts from when an engine is there to ask; for one it waits `engine.start_timeout_s` at most.

        Raises:
            EngineError: at the deadline, or the engine refused the request.
        """
        engines, began = self._engines, time.monotonic()
        latest = began + engines.start_timeout_s + engines.request_timeout_s
        deadline = began + engines.request_timeout_s
        cause = "no engine is in rotation"
        while (left := deadline - time.monotonic()) > 0:
            if not engines.keeps(self.handle):
                self.handle = engines.least_loaded()
            if self.handle is None:
                if engines.rotation.is_growing:
                    deadline = min(time.monotonic() + engines.request_timeout_s, latest)
                await asyncio.sleep(_RETRY_S)
                continue
            asked = self.handle  # calls of one agent run side by side
            try:
                async with asyncio.timeout(left):
                    completion: Completion = await asked.generate.remote(prompt_ids)
                return completion
            except RayActorError as error:
                cause = last_line(error)
                engines.died(asked)
                deadline = min(time.monotonic() + engines.request_timeout_s, latest)
                await asyncio.sleep(_RETRY_S)
            except TimeoutError:
                cause = "the engine did not answer"
            except RayError as error:
                raise EngineError(last_line(error)) from error
        raise EngineError(f"no completion within {time.monotonic() - began:.0f} s: {cause}")


def last_line(error: BaseException) -> str:
    """The one line of a remote error that names its cause; of several at once, the first."""
    cause: BaseException = error.cause if isinstance(error, RayTaskError) else error
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if cause is not error:
        return f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
