"""A thread of its own for every episode: what its environment is asked, from constructor to close, is asked there.

Environments may hold what belongs to the thread that made it: a database connection, thread-local values. Threads are
daemons, so a call that hangs keeps no process from ending. Python cannot take a running call back; nothing here bounds
its time.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from queue import SimpleQueue
from typing import Any

logger = logging.getLogger(__name__)

_Job = tuple[Future[Any], Callable[[], Any], AbstractContextManager[object]]


class EpisodeThread:
    """Does what is submitted, one after the other; its thread starts with the first call."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="episode", daemon=True)

    def submit(self, call: Callable[[], Any], gate: AbstractContextManager[object] | None = None) -> Future[Any]:
        """Have `call` made, inside `gate`; until it has passed the gate the future can be cancelled.

        Raises RuntimeError where the system gives no more threads.
        """
        if self._thread.ident is None:
            self._thread.start()
        future: Future[Any] = Future()
        self._jobs.put((future, call, gate or contextlib.nullcontext()))
        return future

    def end(self) -> None:
        """Let the thread end once it has done what was submitted."""
        self._jobs.put(None)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            _do(*job)
            del job  # what the call holds (an environment) ends here, on its thread, not wherever the next one begins


def _do(future: Future[Any], call: Callable[[], Any], gate: AbstractContextManager[object]) -> None:
    with gate:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = call()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)


def first_line(error: BaseException) -> str:
    """The first line of what `error` says, at most 300 characters."""
    try:
        text = str(error)
    except Exception:  # a user's exception may fail at that, too
        text = "(its message cannot be read)"
    return (text.splitlines() or [""])[0][:300].encode(errors="replace").decode()


def closing_error(env: Any) -> BaseException | None:
    """Close `env`; what that raised, or None."""
    try:
        env.close()
    except BaseException as error:
        # The episode is over and counted; what close() raises can change nothing about it.
        logger.warning("environment close() raised %s: %s", type(error).__name__, first_line(error))
        return error
    return None
