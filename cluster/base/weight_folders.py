"""Folders in shared memory through which weights reach the engines of a host.

Memory-backed, readable by this user only, and locked while somebody needs them. The lock, and no process id, tells what
a killed process left: containers share memory but not their processes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from functools import cache
from pathlib import Path

from milepost.cluster.base.files import try_lock

_SHARED_MEMORY = Path("/dev/shm")


class WeightFolder:
    """Where a run's driver and its learner keep weights on their host, while the driver lives."""

    def __init__(self, run_id: str) -> None:
        _remove_what_nobody_holds()
        # Two runs of one name (a resume beside a dying predecessor) must not share files.
        self.path = _SHARED_MEMORY / f"milepost-{run_id}-{os.getpid()}"
        self.for_engines = f"milepost-{run_id}-engines-{os.getpid()}"
        """Name of the folder that engines share on a host of theirs; see `open_shared`."""
        unseen = _SHARED_MEMORY / f".{self.path.name}"  # by its own name only once it is locked
        unseen.mkdir(mode=0o700, parents=True)
        self._lock = os.open(unseen, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unseen.rename(self.path)

    def file(self, version: int) -> Path:
        """The path for the weights of `version`."""
        return self.path / f"v{version}.safetensors"

    def keep_only(self, version: int) -> None:
        """Remove the files of all other versions."""
        for file in self.path.glob("v*.safetensors"):
            if file != self.file(version):
                file.unlink()

    def close(self) -> None:
        """Give the memory back."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


@cache
def open_shared(name: str) -> Path:
    """The folder of that name on this host, which stays as long as one of the processes lives that opened it."""
    _remove_what_nobody_holds()
    path = _SHARED_MEMORY / name
    while True:
        path.mkdir(mode=0o700, exist_ok=True)
        held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(held, fcntl.LOCK_SH)
        if path.exists() and path.stat().st_ino == os.fstat(held).st_ino:
            return path
        os.close(held)  # another process removed it before it was locked


def close_shared(name: str) -> None:
    """Give its memory back, at the end of a run."""
    shutil.rmtree(_SHARED_MEMORY / name, ignore_errors=True)


def _remove_what_nobody_holds() -> None:
    for left in _SHARED_MEMORY.glob("milepost-*-*"):
        if left.name.rpartition("-")[2].isdecimal():
            _remove_unless_held(left)


def _remove_unless_held(folder: Path) -> None:
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # another user's, or gone meanwhile
        return
    try:
        if try_lock(held):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(held)
