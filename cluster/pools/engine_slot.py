"""The place of one engine in the pool: it stays while the processes that serve there come and go."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Any

from milepost.cluster.pools.engines import EngineHealth


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
    rests: bool = False
    """Lost, with no restart left for the time being."""
    restart: asyncio.Task[None] | None = None
    probe: asyncio.Future[EngineHealth] | None = None
    probed_at: float = 0.0
    busy_s: float = 0.0
    metrics_port: int | None = None
    """Where vLLM's own metrics are served on the engine's host, once it has said so."""


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
