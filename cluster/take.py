"""Waiting for the groups of one update, with room made in the buffer where it lacks, until a stop or the deadline."""

from __future__ import annotations

import asyncio
import time

from milepost.cluster.base.exits import WatchdogExpired
from milepost.cluster.recovery import Recovery
from milepost.cluster.replay.ready import NothingReady, Taken
from milepost.cluster.system import System

_SLICE_S = 2.0


async def take_groups(system: System, recovery: Recovery, version: int, stopping: asyncio.Event) -> Taken | None:
    """Lease the groups that policy `version` learns from next, or None if a stop came first.

    Raises WatchdogExpired after `run.stall_timeout_s`, naming who is missing.
    """
    run = system.config.run
    deadline = time.monotonic() + run.stall_timeout_s
    while not stopping.is_set():
        try:
            return await system.buffer.take(
                run.groups_per_iteration, version=version, max_staleness=run.max_staleness, timeout_s=_SLICE_S
            )
        except NothingReady as missing:
            await recovery.make_room()
            if time.monotonic() > deadline:
                reason = f"no update for run.stall_timeout_s = {run.stall_timeout_s:g}: {missing}"
                raise WatchdogExpired(reason) from None
    return None
