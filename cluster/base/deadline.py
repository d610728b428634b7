"""Deadlines of two kinds of work: a blocking call that may hang, and a long wait that may take long but not stall."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
Progress = Callable[[], Awaitable[int]]
_LOOK_EVERY_S = 2.0


async def on_a_thread(call: Callable[[], T], *, timeout_s: float) -> T:
    """What `call` returns, or raises. Raises TimeoutError after `timeout_s`; the thread is then left behind.

    Its thread is a daemon: those of `asyncio.to_thread` are joined at the end of the loop and of the process, and a
    disk or a file system that never answers would be waited for without end.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    outcome: list[Callable[[], T]] = []

    def run() -> None:
        try:
            value = call()
            outcome.append(lambda: value)
        except BaseException as raised:
            outcome.append(partial(_raise, raised))
        with contextlib.suppress(RuntimeError):  # the loop ended meanwhile
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=run, daemon=True).start()
    async with asyncio.timeout(timeout_s):
        await ended.wait()
    return outcome[0]()


async def while_it_goes_on(work: Coroutine[Any, Any, T], done_so_far: Progress, *, stall_timeout_s: float) -> T:
    """What `work` returns or raises, however long it takes, while `done_so_far` grows.

    Raises TimeoutError once it did not for `stall_timeout_s`. It may fall: what was lost is done again.
    """
    task = asyncio.ensure_future(work)
    try:
        last, moved_at = await done_so_far(), time.monotonic()
        while time.monotonic() - moved_at <= stall_timeout_s:
            await asyncio.wait({task}, timeout=min(_LOOK_EVERY_S, stall_timeout_s / 4))
            if task.done():
                return task.result()
            before, last = last, await done_so_far()
            moved_at = time.monotonic() if last > before else moved_at
        raise TimeoutError(f"no progress for {stall_timeout_s:g} s")
    finally:
        task.cancel()
        await asyncio.wait({task})


async def unless(stopping: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do `work`, but leave it where `stopping` is set meanwhile. Raises what it raises."""
    task, stop = asyncio.ensure_future(work), asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        task.cancel()
        stop.cancel()
        await asyncio.wait({task, stop})


def _raise(error: BaseException) -> NoReturn:
    raise error
