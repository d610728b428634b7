"""The transition history of every task of a run, in Redis: what earlier groups of the task met, fading by version.

It enriches credit and is never trained on, so it stands beside the ledger and the buffer and touches neither. A group
counts once, however often it is delivered. A history is not part of a checkpoint: after a rollback it still holds what
the abandoned weights met, until that has faded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from milepost.cluster.replay.client import BufferUnavailable, Client
from milepost.cluster.replay.store import Store
from milepost.cluster.replay.wire import MAX_BYTES, WireError
from milepost.envs.types import Task
from milepost.learner.credit.assignment import PastTransition
from milepost.learner.credit.history import faded, merged

SCHEMA_VERSION: Final = 1
MAX_TRANSITIONS: Final = 2000
"""Different transitions kept per task, those seen most often: five groups of 8 x 50 turns that never meet."""
_PREFIX: Final = b"mpH" + bytes([SCHEMA_VERSION])
_ATTEMPTS: Final = 50
"""How often one update starts again because another writer was faster."""

# A group is counted and its counts are stored, or neither; `revision` tells whether somebody wrote in between.
_ADD: Final = """
local history, counted = KEYS[1], KEYS[2]
local group_id, version, revision, counts = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if redis.call('ZSCORE', counted, group_id) then return 'counted' end
if (redis.call('HGET', history, 'revision') or '0') ~= revision then return 'changed' end
redis.call('HSET', history, 'revision', revision + 1, 'counts', counts)
redis.call('ZADD', counted, version, group_id)
return 'added'
"""

_Row = Annotated[int, msgspec.Meta(ge=0)]


class _Counts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    """Policy version the counts were last faded at."""
    states: list[str]
    transitions: list[tuple[_Row, str, _Row | None, bool, float]]
    """(anchor, action, target or None, won, count); anchor and target are rows of `states`."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Counts)


class TaskHistory:
    """One run's histories. Every method can be repeated and raises as `Store.command` does.

    Counts lose the share `1 - decay` with every policy version, and the faintest are forgotten. A version that is
    older than the last one seen fades nothing: time does not run backwards after a rollback.
    """

    def __init__(self, client: Client, run_id: str, *, decay: float) -> None:
        """`decay` is the `history_decay` of the credit settings, in (0, 1). Raises ValueError for any other."""
        if not 0.0 < decay < 1.0:
            raise ValueError(
                f"a history that keeps {decay} of its counts per version: set history_decay between 0 and 1"
            )
        self._store = Store(client, run_id)
        self._decay = decay
        self._counted = self._key("counted")

    async def fetch(self, tasks: Sequence[Task], *, version: int) -> list[tuple[PastTransition, ...]]:
        """What is known of each of `tasks`, as it has faded by policy `version`; empty for a task never met.

        Raises WireError where the stored bytes are not a history.
        """
        found = []
        for task in tasks:
            data = await self._store.command("HGET", self._task_key(task), "counts")
            found.append(self._known(data, task, version)[1])
        return found

    async def add(self, task: Task, group_id: str, new: Sequence[PastTransition], *, version: int) -> bool:
        """Count what one group saw (`transitions` of it); False, and no change, if the group was counted before.

        Args:
            version: the one that the update with this group made, as in `TrajectoryBuffer.commit`.

        Raises WireError where the stored bytes are not a history or it outgrows the size limit, BufferUnavailable
        where other writers were faster every time.
        """
        key = self._task_key(task)
        for _ in range(_ATTEMPTS):
            revision, data = await self._store.command("HMGET", key, "revision", "counts")
            newest, past = self._known(data, task, version)
            counts = _encode(newest, merged(past, new, limit=MAX_TRANSITIONS), task)
            answer = await self._store.command(
                "EVAL", _ADD, 2, key, self._counted, group_id, version, revision or b"0", counts
            )
            if answer != b"changed":
                return bool(answer == b"added")
        raise BufferUnavailable(
            f"group {group_id} waited for the history of {_name(task)}, which others kept changing ({_ATTEMPTS} tries)"
        )

    async def settle(self, version: int) -> None:
        """A checkpoint holds the updates up to `version`: their groups are not delivered again, forget their ids."""
        await self._store.command("ZREMRANGEBYSCORE", self._counted, "-inf", version)

    def _known(self, data: bytes | None, task: Task, version: int) -> tuple[int, tuple[PastTransition, ...]]:
        """The newest version the history has seen, `version` included, and the counts as they are then."""
        if data is None:
            return version, ()
        last, past = _decode(data, task)
        newest = max(last, version)
        return newest, faded(past, self._decay ** (newest - last))

    def _task_key(self, task: Task) -> str:
        """Key of the hash of one task. Equal tasks have one key on every machine and in every process."""
        digest = hashlib.sha256(msgspec.msgpack.encode(task, order="sorted")).hexdigest()[:32]
        return self._key(f"task:{digest}")

    def _key(self, name: str) -> str:
        return f"mp:{{{self._store.run_id}}}:history:{name}"


def _encode(version: int, past: Sequence[PastTransition], task: Task) -> bytes:
    rows: dict[str, int] = {}

    def row(state: str) -> int:
        return rows.setdefault(state, len(rows))

    transitions = [(row(p.anchor), p.action, None if p.target is None else row(p.target), p.won, p.count) for p in past]
    data = _PREFIX + _encoder.encode(_Counts(version, list(rows), transitions))
    if len(data) > MAX_BYTES:
        raise WireError(
            "oversize",
            f"the history of {_name(task)} takes {len(data)} bytes, the limit is {MAX_BYTES}: "
            "shorten the state keys of the environment",
        )
    return data


def _decode(data: bytes, task: Task) -> tuple[int, list[PastTransition]]:
    """The version and the transitions in `data`. Raises WireError with the reason where there are none."""
    where = f"history of {_name(task)}"
    if len(data) > MAX_BYTES:
        raise WireError("oversize", f"{where}: {len(data)} bytes, the limit is {MAX_BYTES}")
    if data[: len(_PREFIX) - 1] != _PREFIX[:-1] or len(data) < len(_PREFIX):
        raise WireError("foreign", f"{where} was not written by milepost: starts with {data[: len(_PREFIX)]!r}")
    if data[len(_PREFIX) - 1] != SCHEMA_VERSION:
        raise WireError(
            "schema", f"{where}: schema version {data[len(_PREFIX) - 1]}, this program reads {SCHEMA_VERSION}"
        )
    try:
        counts = _decoder.decode(memoryview(data)[len(_PREFIX) :])
        state = counts.states.__getitem__
        return counts.version, [
            PastTransition(state(anchor), action, None if target is None else state(target), won, count)
            for anchor, action, target, won, count in counts.transitions
        ]
    except (ValueError, IndexError) as error:
        raise WireError("malformed", f"{where}: {error}") from error


def _name(task: Task) -> str:
    return f"task {task.env} with seed {task.seed}"
