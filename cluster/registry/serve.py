"""The process of `milepost serve`: it listens on loopback, follows the registry, and leaves in order when told to."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from milepost.cluster.base.deadline import unless
from milepost.cluster.base.exits import ConfigError
from milepost.cluster.base.surroundings import make_usable
from milepost.cluster.registry.metrics import RegistryMetrics
from milepost.cluster.registry.model_server import MODEL
from milepost.cluster.registry.registry import Registry
from milepost.cluster.registry.serving import HOST, Limits, Serving

_LEAVE_S = 5.0
"""What requests under way get when the program is told to end."""


def run(registry: Registry, limits: Limits, arguments: Sequence[str], *, port: int, window_s: float) -> None:
    """Serve until SIGINT or SIGTERM. Raises ConfigError, and DependencyLost where nothing can be served."""
    for told in make_usable():
        _say(told)
    with tempfile.TemporaryDirectory(prefix="milepost-serve-") as folder:
        serving = Serving(registry, limits, arguments, Path(folder), _say)
        asyncio.run(_run(serving, RegistryMetrics(registry, lambda: serving.version, window_s=window_s), port))


async def _run(serving: Serving, metrics: RegistryMetrics, port: int) -> None:
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    app = serving.app(metrics)
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=True, shutdown_timeout=_LEAVE_S, auto_decompress=False
    )
    await runner.setup()
    try:
        await _listen(runner, port)
        where = f"http://{HOST}:{runner.addresses[0][1]}"
        _say(f'{where}/v1 has the model "{MODEL}" once a version serves, {where}/metrics its numbers; Ctrl-C ends it')
        await unless(stopping, serving.follow())
    finally:
        await runner.cleanup()
        await serving.stop()


async def _listen(runner: web.AppRunner, port: int) -> None:
    try:
        await web.TCPSite(runner, HOST, port).start()
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # asyncio's own words repeat the address
        raise ConfigError(f"serve --port {port}: {reason}; give another one, or 0 for a free one") from error


def _say(text: str) -> None:
    print(text, flush=True)
