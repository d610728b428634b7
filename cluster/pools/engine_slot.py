"""The place of one engine in the pool: it stays while the processes that serve there come and go."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError

from milepost.actors.engine import EngineConfig
from milepost.cluster.hosts.ray_start import last_line
from milepost.cluster.pools.engine_process import EngineHealth

_PROBE_TIMEOUT_S = 10.0
_PROBE_SHARE_OF_REQUEST = 0.5
"""A core that answers nothing for half a request's deadline is replaced before the requests that it holds are lost."""
_UNANSWERED = 8
"""Requests in a row without an answer: the engine serves nobody, whatever its core says."""


@dataclass(slots=True)
class EngineSlot:
    """What the pool knows of the engine at one place, whichever process serves there."""

    index: int
    version: int
    handle: Any = None
    starts: int = 0
    serving: bool = False
    waits_for_weights: bool = False
    """Up, but on old weights that only the next publication can replace."""
    loss: str = ""
    """Why it was lost, while nothing is started in its place."""
    roomless_since: float | None = None
    """When it was first seen to be lost together with its host."""
    rests: bool = False
    """Lost, and not waited for: it has no restart left for the time being, or no host had room for it in time."""
    is_missed: bool = False
    """People were told that it does not serve."""
    restart: asyncio.Task[None] | None = None
    probe: asyncio.Future[EngineHealth] | None = None
    probed_at: float = 0.0
    busy_s: float = 0.0
    metrics_port: int | None = None
    """Where vLLM's own metrics are served on the engine's host, once it has said so."""

    @property
    def is_expected(self) -> bool:
        """Whether it is being started, or waited for until a host has room."""
        return self.restart is not None or (self.loss != "" and not self.rests)

    def ask(self) -> None:
        """Probe it, unless a probe is under way."""
        if self.probe is None:
            self.probe, self.probed_at = asyncio.ensure_future(self.handle.health.remote()), time.monotonic()
            self.probe.add_done_callback(lambda probe: probe.cancelled() or probe.exception())

    def complaint(self, config: EngineConfig) -> str | None:
        """Why it must be replaced, by its probe; None where that one is under way, or well."""
        if self.probe is None:
            return None
        if not self.probe.done():
            limit_s = max(_PROBE_TIMEOUT_S, _PROBE_SHARE_OF_REQUEST * config.request_timeout_s)
            late = time.monotonic() - self.probed_at > limit_s
            return f"did not answer a probe within {limit_s:g} s" if late else None
        probe, self.probe = self.probe, None
        try:
            health = probe.result()
        except RayError as error:
            return f"died: {last_line(error)}"
        self.busy_s, self.metrics_port = health.busy_s, health.metrics_port
        if health.unanswered < _UNANSWERED:
            return None
        return (
            f"let {health.unanswered} requests in a row run into engine.request_timeout_s = "
            f"{config.request_timeout_s:g}"
        )


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
