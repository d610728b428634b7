"""Trajectories and failures as bytes: a prefix, then msgpack, decoded strictly.

The prefix names the schema and the kind, so that bytes of another version are refused by name and not misread.
Nothing in them can run code. Sizes are checked before anything is decoded. Integrity is the transport's: a flipped
bit that still is a valid trajectory is not noticed. Tokens are packed by `token_spans`, each of them once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from milepost.cluster.replay.token_spans import PackedTurn, TooManyTokens, facts, pack, unpack
from milepost.envs.types import Failure, Group, Task, Trajectory, TrajectoryFacts

SCHEMA_VERSION: Final = 6
MAX_BYTES: Final = 8 * 1024 * 1024
_MAGIC: Final = b"mp"
_TRAJECTORY, _FAILURE = b"T", b"F"
_PREFIX_BYTES: Final = 4

Reason = Literal["oversize", "foreign", "schema", "kind", "malformed"]


class _PackedTrajectory(TrajectoryFacts, frozen=True, kw_only=True, forbid_unknown_fields=True):
    turns: list[PackedTurn]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedGroup:
    """A group as Redis holds it, and as the learner's ranks are sent it."""

    group_id: str
    task: bytes
    trajectories: tuple[bytes, ...]

    @property
    def num_bytes(self) -> int:
        """What its trajectories take."""
        return sum(map(len, self.trajectories))


_encoder = msgspec.msgpack.Encoder()
_trajectories = msgspec.msgpack.Decoder(_PackedTrajectory)
_failures = msgspec.msgpack.Decoder(Failure)
_tasks = msgspec.msgpack.Decoder(Task)


class WireError(Exception):
    """Bytes that are not what they should be. The message begins with the reason."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")


def encode(record: Trajectory | Failure, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Bytes of a trajectory or a failure, prefix included.

    Raises WireError("oversize") above `max_bytes` or `token_spans.MAX_TOKENS`, and WireError("malformed") for numbers
    that have no place there.
    """
    if isinstance(record, Trajectory):
        data = _prefix(_TRAJECTORY) + _encoder.encode(_packed(record))
    else:
        data = _prefix(_FAILURE) + _encoder.encode(record)
    if len(data) > max_bytes:
        excess = f"{_name(record)} takes {len(data)} bytes, the limit is {max_bytes}"
        raise WireError("oversize", f"{excess}: raise buffer.max_entry_bytes, or shorten episodes and observations")
    return data


def decode_trajectory(data: bytes, *, max_bytes: int = MAX_BYTES) -> Trajectory:
    """The trajectory in `data`. Raises WireError with the reason where there is none."""
    body = _body(data, _TRAJECTORY, max_bytes)
    try:
        return _unpacked(_trajectories.decode(body))
    except TooManyTokens as error:
        raise WireError("oversize", str(error)) from error
    except ValueError as error:  # msgspec's errors and UnicodeDecodeError
        raise WireError("malformed", str(error)) from error


def decode_group(encoded: EncodedGroup) -> Group:
    """The group in `encoded`, of any size: who fetched it has looked. Raises WireError where there is none."""
    trajectories = [decode_trajectory(data, max_bytes=len(data)) for data in encoded.trajectories]
    try:
        return Group(group_id=encoded.group_id, task=decode_task(encoded.task), trajectories=trajectories)
    except ValueError as error:
        raise WireError("malformed", str(error)) from error


def decode(data: bytes) -> Trajectory | Failure:
    """What `encode` wrote, of any size. Raises WireError with the reason where there is neither."""
    if data[len(_MAGIC) + 1 : _PREFIX_BYTES] == _FAILURE:
        return decode_failure(data)
    return decode_trajectory(data, max_bytes=len(data))


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


def _packed(trajectory: Trajectory) -> _PackedTrajectory:
    try:
        return _PackedTrajectory(turns=pack(trajectory.turns), **facts(trajectory, TrajectoryFacts))
    except TooManyTokens as error:
        raise WireError("oversize", f"{_name(trajectory)}: {error}") from error
    except ValueError as error:
        raise WireError("malformed", f"{_name(trajectory)}: {error}") from error


def _unpacked(packed: _PackedTrajectory) -> Trajectory:
    return Trajectory(turns=unpack(packed.turns), **facts(packed, TrajectoryFacts))


def _name(record: Trajectory | Failure) -> str:
    return f"episode {record.index} of group {record.group_id}"


def _prefix(kind: bytes) -> bytes:
    return _MAGIC + bytes([SCHEMA_VERSION]) + kind


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
