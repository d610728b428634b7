"""Weights through Ray's object store: from the learner's rank 0, in hashed chunks, to one file on each engine's host.

Ray brings a chunk to a host once, whoever asks for it there. The engines of a host share the file that is made of the
chunks, in memory; the first that needs it writes it while the others wait.

Not promised: that they can be fetched once the process that put them is gone, since Ray drops them with it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError

from milepost.cluster.base.weight_folders import open_shared

logger = logging.getLogger(__name__)
CHUNK_BYTES = 64 * 2**20
_CHUNK_S = 120.0
"""How long one chunk may take to a host."""
_FETCHES = 2


class LostChunkError(Exception):
    """A part of the weights did not arrive as it was put, twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeights:
    """One set of weights, a safetensors file in chunks of `CHUNK_BYTES`."""

    folder: str
    """Name of the folder that engines keep them in, on each host the same."""
    chunks: tuple[ray.ObjectRef, ...]
    sha256: tuple[str, ...]
    """Of each chunk."""
    num_bytes: int
    """Of all chunks."""

    @property
    def name(self) -> str:
        """Of the file on an engine's host: another one for other bytes."""
        return hashlib.sha256("".join(self.sha256).encode()).hexdigest()[:16] + ".safetensors"


def put(blob: bytes, *, folder: str) -> StoredWeights:
    """Put the bytes of a safetensors file into the object store, where they stay as long as somebody holds the result.

    `folder`: name of the one that engines keep them in.
    """
    parts = [np.frombuffer(blob, np.uint8)[at : at + CHUNK_BYTES] for at in range(0, len(blob), CHUNK_BYTES)]
    return StoredWeights(
        folder=folder,
        chunks=tuple(ray.put(part) for part in parts),
        sha256=tuple(hashlib.sha256(part.data).hexdigest() for part in parts),
        num_bytes=len(blob),
    )


def fetch(stored: StoredWeights) -> Path:
    """The weights as a file in this host's memory, every chunk of which hashed to what it should.

    Raises:
        LostChunkError: a chunk did not arrive, or a wrong one did, and again when it was fetched again.
        OSError: this host has no room for them.
    """
    folder = open_shared(stored.folder)
    path = folder / stored.name
    with _alone_in(folder):
        if not path.exists():
            for older in folder.glob("*.safetensors"):
                older.unlink()
            unfinished = path.with_suffix(".part")
            try:
                with unfinished.open("wb") as file:
                    for number in range(len(stored.chunks)):
                        file.write(_chunk(stored, number).data)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise OSError(
                    f"{folder.parent} of host {socket.gethostname()} has no room for the weights: give it more "
                    "(docker run --shm-size), or take a smaller model"
                ) from error
            unfinished.rename(path)
    return path


def _chunk(stored: StoredWeights, number: int) -> NDArray[np.uint8]:
    expected, cause = stored.sha256[number], ""
    for _ in range(_FETCHES):
        try:
            chunk: NDArray[np.uint8] = ray.get(stored.chunks[number], timeout=_CHUNK_S)
        except RayError as error:
            cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        else:
            if (found := hashlib.sha256(chunk.data).hexdigest()) == expected:
                return chunk
            cause = f"it hashes to {found[:12]}, expected {expected[:12]}"
        logger.warning("chunk %d of %d of new weights: %s", number + 1, len(stored.chunks), cause)
    raise LostChunkError(f"chunk {number + 1} of {len(stored.chunks)} of the weights did not arrive: {cause}")


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One engine of a host at a time."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
