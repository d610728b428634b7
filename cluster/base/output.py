"""Where a command's words go: its log, and a stdout that is the caller's alone."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from milepost.cluster.base.exits import Exit, disk_failure


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
        if (lost := disk_failure(error, folder=log.parent.parent)) is not None:
            raise lost from error
        reason = " ".join(str(error).split())[:200]
        raise Exit(f"unexpected {type(error).__name__}: {reason}; the traceback is in {log}") from error
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        with contextlib.suppress(OSError):  # it may still hold a line that the disk does not take
            handler.close()


@contextlib.contextmanager
def own_stdout() -> Iterator[TextIO]:
    """Give stdout to the caller alone: whatever else is written there, also by child processes, goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(kept, "w", encoding="utf-8", closefd=False) as stdout, contextlib.redirect_stdout(sys.stderr):
            yield stdout
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
