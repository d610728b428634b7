"""Keeps the groups a run trained on, in the interchange format, so that they can be scored again.

States, actions and rewards only: no token, no measurement of the learner. It is a window, not an archive: the newest
groups stay, at most 128 MiB of them. A group that is trained again after a crash stands there twice.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from milepost.envs.types import Group
from milepost.learner.credit.assignment import from_group
from milepost.learner.credit.interchange import encode

logger = logging.getLogger(__name__)
_MAX_BYTES = 64 * 1024 * 1024


class GroupLog:
    """Appends to `path`; when that is full, it becomes `<name>.1<suffix>` in the place of the one before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._older = path.with_name(f"{path.stem}.1{path.suffix}")
        _cut_torn_line(path)

    def add(self, groups: Sequence[Group]) -> None:
        """Write one line per group.

        Raises:
            OSError: the file can't be written.
            ValueError: a group is not one that credit can be computed from; see `from_group`.
        """
        lines = b"".join(encode(from_group(group)) + b"\n" for group in groups)
        with self._path.open("ab") as file:
            is_full = file.tell() > 0 and file.tell() + len(lines) > _MAX_BYTES
            if not is_full:
                file.write(lines)
        if is_full:
            os.replace(self._path, self._older)
            logger.info("%s was full and is now %s; the groups before those are gone", self._path, self._older.name)
            self._path.write_bytes(lines)


def _cut_torn_line(path: Path) -> None:
    """Drop what a killed driver left of its last line: the next line would be glued to it."""
    if not path.exists():
        return
    whole = 0
    with path.open("rb+") as file:
        for line in file:
            if line.endswith(b"\n"):
                whole += len(line)
        file.truncate(whole)
