"""Folders that Ray, torch and vLLM take for granted, put elsewhere where this machine's cannot serve."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_LONGEST_NAME = 107
"""In bytes, of a Unix socket with its path."""
_RAYS = len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
_SHORT = "/tmp"


def make_usable() -> Iterator[str]:
    """Set TMPDIR and HOME for this process and its children where theirs cannot serve; yields what to tell the user."""
    room = _LONGEST_NAME - _RAYS
    if len(os.fsencode(tempfile.gettempdir())) > room:
        os.environ["TMPDIR"] = tempfile.tempdir = _SHORT
        yield f"TMPDIR is longer than the {room} bytes that names of sockets leave for it: using {_SHORT}"
    if not _is_usable(Path.home()):
        home = tempfile.mkdtemp(prefix="milepost-home-")  # new and private: it will hold Ray's token
        yield f"the home folder {Path.home()} cannot be written: using {home}"
        os.environ["HOME"] = home


def _is_usable(home: Path) -> bool:
    """Whether files can be made there; a folder that is missing is made, as those who want it would."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            return True
    except OSError:
        return False
