"""An event loop on a thread of its own, for coroutines of users: rewards that are async.

One loop per process, so that a client or a session that a reward keeps between calls belongs to one loop. A coroutine
that holds the loop up holds up those of other episodes, not the worker. Not promised: that a coroutine which swallows
its cancellation, or never awaits, ends.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any


class Overdue(TimeoutError):
    """A coroutine was not done within its time and was cancelled."""


class CoroutineThread:
    """Runs what is submitted side by side; its thread starts with the first one and ends with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, coroutine: Coroutine[Any, Any, Any], limit_s: float) -> Future[tuple[Any, BaseException | None]]:
        """Have `coroutine` run for at most `limit_s`; the future holds what it returned, and what it raised.

        Both come as values, for SystemExit and CancelledError mean something else to asyncio than to user code. Raises
        RuntimeError where the system gives no more threads.
        """
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                threading.Thread(target=loop.run_forever, name="coroutines", daemon=True).start()
                self._loop = loop
        return asyncio.run_coroutine_threadsafe(_ended(coroutine, limit_s), self._loop)


async def _ended(coroutine: Coroutine[Any, Any, Any], limit_s: float) -> tuple[Any, BaseException | None]:
    try:
        async with asyncio.timeout(limit_s) as clock:
            return await coroutine, None
    except BaseException as error:
        return None, Overdue() if clock.expired() else error
