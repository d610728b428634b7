"""A terminal for one engine and one person: what libraries write goes to a file that is kept only if it is needed."""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from milepost.cluster.base.exits import ConfigError, DependencyLost
from milepost.cluster.base.output import others_to


@contextlib.contextmanager
def own_terminal() -> Iterator[IO[str]]:
    """Yield a stream to stdout. What else is written goes to a file, which stays where an error leaves it to be read.

    A DependencyLost then names the file.
    """
    number, name = tempfile.mkstemp(prefix="milepost-", suffix=".log")
    os.close(number)
    log = Path(name)
    try:
        with others_to(log) as stdout:
            yield stdout
            gc.collect()  # an engine that is left to the interpreter's end complains there
    except DependencyLost as lost:
        raise DependencyLost(f"{lost}; {log} holds what the engine wrote") from lost
    except (ConfigError, KeyboardInterrupt):
        log.unlink()
        raise
    log.unlink()
