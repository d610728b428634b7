"""Model folders that are made once: built under another name, published by a rename, reused afterwards.

A folder under its final name is complete. Two processes that ask for the same folder at once build it once: the second
waits, with a deadline, for the first. A build that was killed leaves a `.partial` folder, which the next one removes.
Not promised: eviction; the cache is the user's to empty.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_S = 0.2
_TIMEOUT_S = 900.0


class ModelCacheError(ValueError):
    """A model folder could not be made or waited for."""


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, made by `build(partial_folder)` if it does not exist yet.

    Raises `ModelCacheError` if another process builds it for longer than 15 minutes or the cache cannot be written,
    and what `build` raises; then nothing is published.
    """
    if folder.is_dir():
        return folder
    with _locked(folder.with_name(folder.name + ".lock")):
        if not folder.is_dir():
            _build_and_publish(folder, build)
    return folder


def _build_and_publish(folder: Path, build: Callable[[Path], None]) -> None:
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():  # its builder died: we hold the lock
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        build(partial)
        for path in partial.rglob("*"):
            if path.is_file():
                _flush(path)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _flush(path: Path) -> None:
    """Bring a file to disk, so that after a power cut a published folder never holds a torn one."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel releases it when the process dies."""
    deadline = time.monotonic() + _TIMEOUT_S
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise ModelCacheError(f"model cache {path.parent} cannot be written ({error}); choose another one") from error
    with lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ModelCacheError(
                        f"waited {_TIMEOUT_S:g} s for another process that builds {path.with_suffix('')}; stop it, or "
                        "wait for it and start again"
                    ) from None
                time.sleep(_POLL_S)
        yield
