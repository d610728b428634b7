"""Where a command's words go: its log, a stdout that is the caller's alone, a reader who may have left."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, TextIO, cast

from milepost.cluster.base.exits import Exit, exit_of


class _Log(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A line that cannot be written is lost: a full disk is told of once, by what ends with it."""


@contextlib.contextmanager
def logging_to(log: Path) -> Iterator[None]:
    """Log to the file `log`, and send the traceback of an unexpected error there instead of to the terminal."""
    log.parent.mkdir(mode=0o700, exist_ok=True)
    handler = _Log(log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    except Exit as end:
        root.error("exit %d: %s", end.code, end)
        raise
    except Exception as error:
        root.exception("unexpected error")
        if (known := exit_of(error, folder=log.parent.parent)) is not None:
            raise known from error
        reason = " ".join(str(error).split())[:200]
        raise Exit(f"unexpected {type(error).__name__}: {reason}; the traceback is in {log}") from error
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        with contextlib.suppress(OSError):  # it may still hold a line that the disk does not take
            handler.close()


class _Patient(io.TextIOBase):
    """A stream whose reader may leave, as `head` does: what is written after that goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except BrokenPipeError:
            self._let_go()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._let_go()

    def _let_go(self) -> None:
        """What is still in its buffer, and what others write there, goes nowhere too: also at the process's end."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True

    @property
    def closed(self) -> bool:
        return self._stream.closed

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    @property
    def buffer(self) -> BinaryIO:
        return self._stream.buffer


@contextlib.contextmanager
def readers_may_leave() -> Iterator[None]:
    """Nobody who stops reading stdout or stderr, or never opened them, changes how a command ends.

    Nor does a terminal that lacks a letter: its number is shown.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    while (lowest := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # it takes the place of a closed one, which the next file that is opened would get
    os.close(lowest)
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(_Patient(sys.stdout or nowhere)),
        contextlib.redirect_stderr(_Patient(sys.stderr or nowhere)),
    ):
        yield


@contextlib.contextmanager
def own_stdout() -> Iterator[io.TextIOBase]:
    """Give stdout to the caller alone: whatever else is written there, also by child processes, goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(kept, "w", encoding="utf-8", closefd=False) as stdout, contextlib.redirect_stdout(sys.stderr):
            yield _Patient(stdout)
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def others_to(log: Path) -> Iterator[IO[str]]:
    """Yield a stream to the real stdout; all else that is written there or to stderr goes to the end of the file `log`.

    That holds for libraries in C and for child processes too.
    """
    with log.open("ab") as file, own_stdout() as stdout:
        kept = os.dup(2)
        sys.stderr.flush()
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield cast(IO[str], stdout)  # it has all that printing needs
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
