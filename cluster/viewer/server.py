"""Serves the viewer's pages on the loopback interface until Ctrl-C. Whoever works on this machine can read them."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Final

import uvicorn

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.viewer.app import HOSTS, make_app
from milepost.cluster.viewer.sources import Sources

_GRACE_S: Final = 2


def serve(sources: Sources, port: int, say: Callable[[str], None]) -> None:
    """Serve on `port`, or on a free one for 0, until Ctrl-C or SIGTERM; `say` is told the address.

    Raises ConfigError where the port is taken.
    """
    try:
        listening = socket.create_server((HOSTS[0], port))
    except OSError as error:
        raise ConfigError(
            f"view --port {port}: {os.strerror(error.errno or 0)}; give another one, or leave it out"
        ) from error
    with listening:
        say(f"http://{HOSTS[0]}:{listening.getsockname()[1]}/   (Ctrl-C ends it)")
        config = uvicorn.Config(
            make_app(sources),
            log_level="error",
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
