"""Lines that a person types on the main thread, for a coroutine on another one.

A thread that waits for input cannot be interrupted, the main thread can: so the program runs beside it, and Ctrl-C and
the end of the input end it in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import IO, Any, TypeVar

T = TypeVar("T")
_END_S = 20.0
"""In which what was begun has to end."""


class Left(Exception):
    """The person has gone: end of the input, or Ctrl-C."""


@dataclass(slots=True)
class Terminal:
    """One person at one terminal."""

    out: IO[str]
    """Where prompts go."""
    _asked: SimpleQueue[tuple[str, Future[str]] | None] = field(default_factory=SimpleQueue)
    _running: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None

    async def ask(self, prompt: str) -> str:
        """The next line. Raises Left."""
        line: Future[str] = Future()
        self._asked.put((prompt, line))
        return await asyncio.wrap_future(line)

    def conduct(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What `coroutine` returns; lines it asks for are read meanwhile. Raises what it raises, and Left."""
        ended: Future[T] = Future()
        ended.add_done_callback(lambda _: self._asked.put(None))
        threading.Thread(target=self._run, args=(coroutine, ended), name="conversation", daemon=True).start()
        has_left = False
        while True:
            try:
                asked = self._asked.get()
                if asked is None:
                    break
                asked[1].set_result(self._read(asked[0]))
            except (EOFError, KeyboardInterrupt):
                has_left = True
                self._cancel()
                with contextlib.suppress(BaseException):  # whatever it makes of that
                    ended.result(_END_S)
                break
        if has_left:
            raise Left
        return ended.result()

    def _read(self, prompt: str) -> str:
        self.out.write(prompt)
        self.out.flush()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    def _run(self, coroutine: Coroutine[Any, Any, T], ended: Future[T]) -> None:
        async def recorded() -> T:
            task = asyncio.current_task()
            assert task is not None
            self._running = (asyncio.get_running_loop(), task)
            return await coroutine

        try:
            ended.set_result(asyncio.run(recorded()))
        except BaseException as error:
            ended.set_exception(error)
        finally:
            self._running = None  # a task keeps what its frames hold: an engine

    def _cancel(self) -> None:
        if self._running is not None:
            loop, task = self._running
            with contextlib.suppress(RuntimeError):  # it has ended meanwhile
                loop.call_soon_threadsafe(task.cancel)
