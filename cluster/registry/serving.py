"""Serving the champion, whichever that is: a reverse proxy in front of vLLM, which follows the registry.

A change starts a server of the new champion beside the one that serves. Once that has answered a completion, new
requests go there; the old one answers what it began, to a deadline, and ends. Where the new one does not start, the old
one goes on. So no request waits for a switch, none sees two versions, and two models are in memory meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
from aiohttp import web

from milepost.cluster.base.deadline import on_a_thread
from milepost.cluster.base.exits import ConfigError, DependencyLost
from milepost.cluster.evaluation import store
from milepost.cluster.registry.metrics import RegistryMetrics
from milepost.cluster.registry.model_server import ModelServer, NotStarted
from milepost.cluster.registry.registry import CONFIG, RESULTS, Registry
from milepost.cluster.registry.trail import NotServed
from milepost.cluster.settings import config as configs

HOST = "127.0.0.1"
_LOOK_EVERY_S = 1.0
_BODY_S = 60.0
_RECORD_S = 60.0
_MAX_BODY = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a switch may take."""

    start_s: float
    """Until a new server answers."""
    drain_s: float
    """Until an old one has answered what it began."""


class Serving:
    """Follows the registry with `follow`, answers with `app`, ends with `stop`."""

    def __init__(
        self, registry: Registry, limits: Limits, arguments: Sequence[str], folder: Path, say: Callable[[str], None]
    ) -> None:
        """`arguments` are given to vLLM after ours; `folder` is an empty one for sockets, with a short name."""
        self._registry, self._limits, self._arguments = registry, limits, arguments
        self._folder, self._say = folder, say
        self._current: ModelServer | None = None
        self._starts = 0
        self._wanted: int | None = None
        """The champion of the last look: what could not be started is not tried again before this changes."""
        self._retiring = dict[asyncio.Task[None], ModelServer]()

    @property
    def version(self) -> int | None:
        """The one that serves; None while none does."""
        return self._current.version if self._current is not None and self._current.is_alive else None

    async def follow(self) -> None:
        """Look for another champion, and serve it, until cancelled.

        Raises ConfigError and DependencyLost where nothing can be served.
        """
        while True:
            await self._look()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _look(self) -> None:
        try:
            wanted = self._registry.state().champion
            if wanted is None:
                raise ConfigError(f"{self._registry.path} has no champion; milepost promote makes one")
        except (ConfigError, OSError) as error:
            if self.version is None:
                raise
            if self._wanted is not None:
                self._say(f"{error}; version {self.version} goes on")
            self._wanted = None
            return
        if wanted == self._wanted and self.version is not None:
            return
        self._wanted = wanted
        if self.version != wanted:
            await self._switch(wanted)

    async def _switch(self, version: int) -> None:
        """Serve another version, or the same one again that has died."""
        if self._current is not None and self.version is None:
            self._say(f"vLLM of version {self._current.version} has ended by itself; starting version {version}")
        try:
            new = await self._started(version)
        except (NotStarted, ConfigError, OSError) as error:
            await self._tell_not_served(version, str(error))
            if self.version is None:
                raise DependencyLost(f"version {version} could not be served: {error}") from error
            self._say(f"version {version} could not be served, version {self.version} goes on: {error}")
            return
        old, self._current = self._current, new
        self._say(f"version {version} serves")
        if old is not None:
            task = asyncio.create_task(self._retire(old))
            self._retiring[task] = old
            task.add_done_callback(self._retiring.pop)

    async def _started(self, version: int) -> ModelServer:
        self._starts += 1
        try:
            policy = await on_a_thread(partial(self._registry.verified_policy, version), timeout_s=self._limits.start_s)
        except TimeoutError as error:
            raise NotStarted(f"its files could not be hashed within {self._limits.start_s:g} s") from error
        (logs := self._registry.path / "logs").mkdir(mode=0o700, exist_ok=True)
        server = ModelServer(
            version,
            [str(policy), *as_evaluated(self._registry.folder(version)), *self._arguments],
            socket=self._folder / f"{self._starts}.sock",
            log=logs / f"version-{version}.log",
        )
        return await server.start(self._limits.start_s)

    async def _tell_not_served(self, version: int, reason: str) -> None:
        def record() -> None:
            with self._registry.lock():
                self._registry.record(NotServed(version=version, reason=reason))

        try:
            await on_a_thread(record, timeout_s=_RECORD_S)
        except (ConfigError, OSError) as error:  # a TimeoutError is one
            self._say(f"the audit trail does not take it: {error}")

    async def _retire(self, old: ModelServer) -> None:
        if not await old.finished(self._limits.drain_s):
            late = f"{self._limits.drain_s:g} s after the switch"
            self._say(f"version {old.version} is ended with {old.in_flight} requests under way, {late}")
        await old.stop()
        self._say(f"version {old.version} has ended")

    async def stop(self) -> None:
        """End all servers, also those that still answer."""
        servers = [*self._retiring.values(), *([self._current] if self._current is not None else [])]
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        for server in servers:
            await server.stop()

    def app(self, metrics: RegistryMetrics) -> web.Application:
        """What clients talk to: everything is vLLM's, and `/metrics` has ours besides."""
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_get("/metrics", partial(self._metrics, metrics))
        app.router.add_route("*", "/{path:.*}", self._forward)
        return app

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        try:
            async with asyncio.timeout(_BODY_S):
                body = await request.read()
        except TimeoutError:
            return _error(408, f"the request's body did not come within {_BODY_S:g} s")
        server = self._current  # from here to the count of its requests nothing else runs
        if server is None or not server.is_alive:
            return _error(503, "no version serves at the moment: its server is being started again")
        try:
            return await server.forward(request, body)
        except (aiohttp.ClientError, TimeoutError) as error:
            if request.writer.output_size:
                raise  # a part of the answer is out: the connection breaks, so that nobody takes it for the whole
            return _error(502, f"vLLM of version {server.version} gave the request up: {type(error).__name__} {error}")

    async def _metrics(self, metrics: RegistryMetrics, _: web.Request) -> web.Response:
        theirs = ""
        if self._current is not None:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                theirs = await self._current.metrics()
        return web.Response(text=theirs + metrics.text(), headers={"Content-Type": metrics.content_type})


def as_evaluated(folder: Path) -> list[str]:
    """Arguments by which vLLM serves a version as it was played on the suite: temperature, and the run's engine.

    Two share a GPU during a switch, so each takes less than half of its memory.
    """
    temperature = store.read(folder / RESULTS).policy.temperature
    sampled = ["--generation-config", "vllm", "--override-generation-config", json.dumps({"temperature": temperature})]
    shared = ["--gpu-memory-utilization", "0.45"]
    if not (folder / CONFIG).exists():
        return sampled + shared
    engine = configs.load(folder / CONFIG).engine
    told = ["--dtype", engine.dtype, "--max-model-len", str(engine.max_model_len)]
    return [*sampled, *shared, *told, "--tensor-parallel-size", str(engine.tensor_parallel_size)]


def _error(status: int, message: str) -> web.Response:
    """As OpenAI's clients read it."""
    said = {"message": message, "type": "server_error", "code": None, "param": None}
    return web.json_response({"error": said}, status=status)
