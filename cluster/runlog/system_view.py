"""What the parts of a running system are at one moment, for Prometheus: seen every few seconds, written nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from milepost.cluster.replay.buffer import Depth
from milepost.cluster.replay.ledger import Balance


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemView:
    """One look at the parts."""

    engines: Mapping[int, int | None]
    """Index of an engine -> the policy version it serves; None while it is not in rotation."""
    workers: int
    """Workers that run."""
    restarts: Mapping[str, int]
    """Restarts so far, by part: engine, worker, learner."""
    depth: Depth
    balance: Balance
    unsaved_updates: int
    """Updates that no checkpoint holds."""
