"""Trajectories and failures as bytes: a prefix, then msgpack, decoded strictly.

The prefix names the schema and the kind, so that bytes of another version are refused by name and not misread.
Nothing in them can run code. Sizes are checked before anything is decoded. Integrity is the transport's: a flipped
bit that still is a valid trajectory is not noticed.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from milepost.envs.types import Failure, Task, Trajectory

SCHEMA_VERSION: Final = 5
MAX_BYTES: Final = 8 * 1024 * 1024
_MAGIC: Final = b"mp"
_TRAJECTORY, _FAILURE = b"T", b"F"
_PREFIX_BYTES: Final = 4

Reason = Literal["oversize", "foreign", "schema", "kind", "malformed"]

_encoder = msgspec.msgpack.Encoder()
_trajectories = msgspec.msgpack.Decoder(Trajectory)
_failures = msgspec.msgpack.Decoder(Failure)
_tasks = msgspec.msgpack.Decoder(Task)


class WireError(Exception):
    """Bytes that are not what they should be. The message begins with the reason."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")


def encode(record: Trajectory | Failure, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Bytes of a trajectory or a failure, prefix included. Raises WireError("oversize") above `max_bytes`."""
    kind = _TRAJECTORY if isinstance(record, Trajectory) else _FAILURE
    data = _MAGIC + bytes([SCHEMA_VERSION]) + kind + _encoder.encode(record)
    if len(data) > max_bytes:
        name = f"episode {record.index} of group {record.group_id}"
        raise WireError("oversize", f"{name} takes {len(data)} bytes, the limit is {max_bytes}: shorten the episode")
    return data


def decode_trajectory(data: bytes, *, max_bytes: int = MAX_BYTES) -> Trajectory:
    """The trajectory in `data`. Raises WireError with the reason where there is none."""
    body = _body(data, _TRAJECTORY, max_bytes)
    try:
        return _trajectories.decode(body)
    except ValueError as error:  # msgspec's errors and UnicodeDecodeError
        raise WireError("malformed", str(error)) from error


def decode_failure(data: bytes) -> Failure:
    """The failure in `data`. Raises WireError with the reason where there is none."""
    body = _body(data, _FAILURE, MAX_BYTES)
    try:
        return _failures.decode(body)
    except ValueError as error:
        raise WireError("malformed", str(error)) from error


def encode_task(task: Task) -> bytes:
    """Msgpack of a task, as the ledger keeps it in the group's record."""
    return _encoder.encode(task)


def decode_task(data: bytes) -> Task:
    """The task in `data`. Raises WireError("malformed") where there is none."""
    try:
        return _tasks.decode(data)
    except ValueError as error:
        raise WireError("malformed", str(error)) from error


def _body(data: bytes, kind: bytes, max_bytes: int) -> memoryview:
    if len(data) > max_bytes:
        raise WireError("oversize", f"{len(data)} bytes, the limit is {max_bytes}")
    if data[:2] != _MAGIC or len(data) < _PREFIX_BYTES:
        raise WireError("foreign", f"not written by milepost: starts with {data[:_PREFIX_BYTES]!r}")
    if data[2] != SCHEMA_VERSION:
        raise WireError("schema", f"schema version {data[2]}, this program reads {SCHEMA_VERSION}")
    if data[3:4] != kind:
        raise WireError("kind", f"kind {data[3:4]!r}, expected {kind!r}")
    return memoryview(data)[_PREFIX_BYTES:]
