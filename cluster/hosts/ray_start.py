"""Joins a Ray or starts one of our own, on a thread, so that signals are heard meanwhile.

Starting takes up to minutes where others compute. Ray's processes end with the thread that started them, thus with this
process at the latest. And of the errors that Ray raises, the line that names the cause.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import AuthenticationError, RayTaskError

from milepost.cluster.base.exits import DependencyLost
from milepost.cluster.base.surroundings import make_usable
from milepost.cluster.placement.hosts import LOCAL_CPUS, named_ray

logger = logging.getLogger(__name__)
_GIVE_UP_AFTER_S = 30.0
"""A start that is given up. Where a signal ended its parts, Ray ends this process after 60 s, with code 1."""


class RayStart:
    """One start, and its end at any point of it."""

    def __init__(self, address: str) -> None:
        """`address` as in `start_ray`."""
        self._is_own: Future[bool] = Future()
        # A daemon: nobody waits for it at the end. It stays, for with it Ray's processes would go.
        self._thread = threading.Thread(target=self._run, args=(address,), name="ray", daemon=True)

    def _run(self, address: str) -> None:
        try:
            self._is_own.set_result(start_ray(address))
        except BaseException as error:
            self._is_own.set_exception(error)
        threading.Event().wait()

    async def begin(self) -> None:
        """Return once Ray is there. Raises DependencyLost."""
        self._thread.start()
        await asyncio.shield(asyncio.wrap_future(self._is_own))
        # Ray's core has put a handler of its own in front of ours, which ends the process 3 s after a SIGTERM
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))

    @property
    def is_own(self) -> bool:
        """Whether it was started here, and so has this host alone."""
        return self._is_own.result()

    @property
    def metrics_port(self) -> int | None:
        """Where a Ray of our own serves its metrics, on loopback; of one that was joined, its head tells."""
        return ray.nodes()[0]["MetricsExportPort"] if self.is_own else None

    async def end(self) -> None:
        """Shut down a Ray of our own. A start that is given up is waited for, though not for ever: see above."""
        try:
            async with asyncio.timeout(_GIVE_UP_AFTER_S):
                is_own = await asyncio.shield(asyncio.wrap_future(self._is_own))
        except (DependencyLost, TimeoutError) as error:
            logger.warning("Ray did not start: %s", str(error) or f"not within {_GIVE_UP_AFTER_S:g} s of the stop")
            return
        if is_own:
            ray.shutdown()


def start_ray(address: str) -> bool:
    """Join the Ray this process was submitted to or `address` names, else start one of our own on loopback.

    Returns whether it is our own. Raises DependencyLost.
    """
    wanted = named_ray(address) or "local"
    for told in make_usable() if wanted == "local" else ():
        logger.warning("%s", told)
    path = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    runtime_env = {"env_vars": {"PYTHONPATH": path, "RAY_DEDUP_LOGS": "0"}}
    local = (
        {
            "num_cpus": LOCAL_CPUS,
            "include_dashboard": False,
            "object_store_memory": 512 * 1024**2,
            "_node_ip_address": "127.0.0.1",
        }
        if wanted == "local"
        else {}
    )
    try:
        ray.init(
            address=wanted,
            runtime_env=runtime_env,
            log_to_driver=False,
            configure_logging=True,
            logging_level=logging.ERROR,
            **local,
        )
    except AuthenticationError as error:
        raise DependencyLost(
            f"Ray at {wanted!r} wants its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH "
            "unless the token is in ~/.ray/auth_token"
        ) from error
    except Exception as error:  # some of what Ray raises is no more than that, as for a part that did not start in 30 s
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DependencyLost(f"Ray at {wanted!r} cannot be used: {reason}") from error
    return wanted == "local"


def alive_hosts() -> list[dict[str, Any]]:
    """What Ray tells of each host that is there."""
    return [node for node in ray.nodes() if node["Alive"]]


def last_line(error: BaseException) -> str:
    """The one line of a remote error that names its cause; of several at once, the first."""
    cause: BaseException = error.cause if isinstance(error, RayTaskError) else error
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if cause is not error:
        return f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
