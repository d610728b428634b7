"""A lock on an open file, and the hash of one."""

from __future__ import annotations

import fcntl
import hashlib
from pathlib import Path


def try_lock(descriptor: int) -> bool:
    """Whether the open file or folder is ours alone from here on; the kernel drops the lock when the process ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes: 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
