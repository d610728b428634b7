"""New weights on their way from the learner to the engines: one verified file per policy version, in shared memory.

Sequence: the learner writes and hashes the file -> every engine pauses (requests kept), verifies the hash, loads ->
digests of the engines are compared -> the version is committed -> requests go on. The last published file stays,
because an engine that is replaced catches up from it. Nothing here survives the run: checkpoints do.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """One policy version's weights, written and hashed."""

    path: Path
    sha256: str
    version: int


class WeightFolder:
    """Where a run's weight files lie: memory-backed, readable by this user only."""

    def __init__(self, run_id: str, *, root: Path = Path("/dev/shm")) -> None:
        # Two runs of one name (a resume beside a dying predecessor) must not share files.
        self.path = root / f"milepost-{run_id}-{os.getpid()}"
        self.path.mkdir(mode=0o700, parents=True)

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


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
