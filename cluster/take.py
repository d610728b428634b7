"""Waiting for the groups of one update, with room made in the buffer where it lacks, until a stop or a stall.

A stall is a time without progress, however long the whole takes. Progress is an episode that finished, above what was
there before in this wait: one that is dropped and played again does not count twice, so the wait has an end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from milepost.cluster.base.exits import WatchdogExpired
from milepost.cluster.recovery import Recovery
from milepost.cluster.replay.ready import NothingReady, Taken
from milepost.cluster.system import System

_SLICE_S = 2.0


async def take_groups(
    system: System, recovery: Recovery, version: int, stopping: asyncio.Event, say: Callable[[str], None]
) -> Taken | None:
    """Lease the groups that policy `version` learns from next, or None if a stop came first.

    While it waits, `say` hears how many are there, at what rate they come, and when that ends.
    Raises WatchdogExpired after `run.stall_timeout_s` without progress, naming who is missing.
    """
    run = system.config.run
    waiting = _Wait(run.groups_per_iteration, run.stall_timeout_s)
    while not stopping.is_set():
        try:
            return await system.buffer.take(
                run.groups_per_iteration,
                version=version,
                max_staleness=run.max_staleness,
                timeout_s=min(_SLICE_S, run.stall_timeout_s),
            )
        except NothingReady as missing:
            await recovery.make_room()
            balance = await system.ledger.balance()
            if system.engines.is_replacing:
                waiting.begin_anew()
            if waiting.is_stalled(missing.have, balance.counts["finished"]):
                reason = f"no episode finished for run.stall_timeout_s = {run.stall_timeout_s:g}: {missing}"
                raise WatchdogExpired(reason) from None
            say(waiting.outlook(missing.have))
    return None


class _Wait:
    """One wait: what was there when it was first looked at, and when the last progress came."""

    def __init__(self, wanted: int, stall_timeout_s: float) -> None:
        self._wanted = wanted
        self._stall_timeout_s = stall_timeout_s
        self._progress_came = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._most = (0, 0)

    def begin_anew(self) -> None:
        """Without an engine there is no progress, and its start has a deadline of its own."""
        self._progress_came = time.monotonic()

    def is_stalled(self, have: int, finished: int) -> bool:
        """Whether neither groups nor finished episodes became more for the stall timeout."""
        now = time.monotonic()
        self._first = self._first or (now, have)
        if have > self._most[0] or finished > self._most[1]:
            self._most, self._progress_came = (max(have, self._most[0]), max(finished, self._most[1])), now
        return now - self._progress_came > self._stall_timeout_s

    def outlook(self, have: int) -> str:
        """For people, e.g. `waiting for groups: 6 of 8, one every 1.5 s, about 3 s left`."""
        there = f"waiting for groups: {have} of {self._wanted}"
        if self._first is None or have <= self._first[1]:
            return there
        each_s = (time.monotonic() - self._first[0]) / (have - self._first[1])
        return f"{there}, one every {each_s:.1f} s, about {each_s * (self._wanted - have):.0f} s left"
