"""A blocking call with a deadline, beside an event loop: what hangs in it hangs nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import NoReturn, TypeVar

T = TypeVar("T")


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


def _raise(error: BaseException) -> NoReturn:
    raise error
