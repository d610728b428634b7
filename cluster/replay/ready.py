"""The learner's side of the buffer: take ready groups, commit what an update consumed, settle it at a checkpoint.

Delivery is at least once, consumption exactly once in the history that survives: a group that was taken stays pending
until a checkpoint holds its update, a commit moves all groups of an update or none, and a rollback to a checkpoint
makes later ones pending again. One learner at a time consumes; the name of the consumer is stable across its
restarts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from milepost.cluster.replay.client import BLOCK_S, BufferRefused, BufferUnavailable, Client
from milepost.cluster.replay.store import Store, chunks
from milepost.cluster.replay.wire import EncodedGroup, WireError, decode_group
from milepost.envs.types import Group

FinalState = Literal["trained", "filtered", "stale", "dead_letter"]
_CONSUMERS = "learner"
_CONSUMER = "learner"
_NAMED_IN_ERRORS = 3
_Entry = tuple[bytes, dict[bytes, bytes] | None]

# Fields and sizes of their values, in turns: a command for each field would cost more than the values do.
_SIZES = """
local found = {}
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  found[#found + 1] = field
  found[#found + 1] = redis.call('HSTRLEN', KEYS[1], field)
end
return found
"""


class NothingReady(Exception):
    """Not enough groups became ready in time; the message says who was waited for, `have` how many are there."""

    def __init__(self, message: str, have: int) -> None:
        super().__init__(message)
        self.have = have


@dataclass(frozen=True)
class LeasedGroup:
    """A ready group in the learner's hands: it stays pending in Redis until it is settled."""

    entry_id: str
    group: Group
    encoded: EncodedGroup
    """The same, as it takes room in the buffer until it is settled."""
    oldest: int
    newest: int

    @property
    def group_id(self) -> str:
        """Name of the group."""
        return self.group.group_id


@dataclass(frozen=True)
class Taken:
    """The groups of one update, and what was discarded on the way since the last `take` that returned."""

    groups: list[LeasedGroup]
    stale: list[Group]
    """Groups that were too old, or sampled by weights that were undone."""
    undecodable: list[tuple[str, str]]
    """Groups that became dead letters, and why."""


class ReadyGroups:
    """The ready groups of one run, as one learner sees them."""

    def __init__(self, client: Client, run_id: str, *, max_entry_bytes: int) -> None:
        self._store = Store(client, run_id)
        self._max_entry_bytes = max_entry_bytes
        self._held: dict[str, LeasedGroup] = {}  # by entry id: read, not handed out yet
        self._handled: set[str] = set()  # entries still pending that this process has handed out
        self._stale: list[Group] = []
        self._undecodable: list[tuple[str, str]] = []

    async def take(self, count: int, *, version: int, max_staleness: int, timeout_s: float) -> Taken:
        """Wait until `count` groups are ready and lease them, in the order in which they became ready.

        What an earlier life of the learner took and did not commit comes first. Groups with
        `version - oldest > max_staleness`, or with a token of a version above `version`, become stale; what cannot be
        decoded becomes a dead letter with its reason. Rides out an absence of Redis shorter than `timeout_s`.

        Needs a configured ledger. Raises NothingReady after `timeout_s`; groups read so far are kept for the next call.
        Raises BufferUnavailable instead where Redis was away at the end.
        """
        end, away = time.monotonic() + timeout_s, None
        while True:
            try:
                await self._discard_stale(version, max_staleness)
                if len(self._held) < count:
                    block_s = min(BLOCK_S, max(0.001, end - time.monotonic()))
                    await self._read(count - len(self._held), block_s)
                    await self._discard_stale(version, max_staleness)
                away = None
            except BufferUnavailable as error:
                away = error
                await asyncio.sleep(0.2)
            if away is None and len(self._held) >= count:
                return self._hand_out(count)
            if time.monotonic() >= end:
                if away is not None:
                    raise BufferUnavailable(f"waited {timeout_s:.0f} s for {count} ready groups: {away}") from away
                raise NothingReady(await self._who_is_missing(count, timeout_s), len(self._held))

    async def commit(self, version: int, outcomes: Mapping[str, FinalState]) -> None:
        """Record that the update that made `version` consumed these groups, and how each ends once it is settled.

        All or none; the ledger's version becomes `version`. Raises BufferRefused for a learner that was overtaken: the
        version is neither the ledger's nor the one after it, or a group is not ready (any more).
        """
        group_ids = list(outcomes)
        answer = await self._store.move("commit", group_ids, version, *outcomes.values())
        match answer:
            case [b"version", current]:
                raise BufferRefused(
                    f"commit of version {version}: the ledger is at {current}, load its checkpoint again"
                )
            case [b"groups", *refused]:
                names = ", ".join(name.decode() for name in refused[:_NAMED_IN_ERRORS])
                raise BufferRefused(
                    f"commit of version {version}: {len(refused)} groups are not ready any more ({names})"
                )

    async def settle(self, version: int) -> int:
        """A checkpoint holds everything up to `version`: give those groups their final state and delete them.

        Returns how many groups were settled.
        """
        applied = await self._store.command("ZRANGEBYSCORE", self._store.applied, "-inf", version)
        settled = 0
        for some in chunks([group_id.decode() for group_id in applied]):
            settled += int(await self._store.move("settle", some, version))
        return settled

    async def rollback(self, version: int) -> int:
        """The learner continues from the checkpoint of `version`: later commits are undone, their groups pending again.

        What weights newer than `version` sampled becomes stale, now or when it arrives: the same numbers will name
        other weights. Groups already settled stay settled. Returns how many groups came back from a later commit.
        """
        return await self._move_all("rollback", version)

    async def advance(self, version: int) -> int:
        """The learner continues from the checkpoint of `version`, and Redis forgot updates that it holds.

        That is a Redis restored from a copy, or a replica that took over. What it calls consumed is settled; what is
        ready or in play may have been trained on in the part that it forgot, and becomes stale: it is played again as
        new groups. Returns how many groups were dropped.
        """
        return await self._move_all("advance", version)

    async def _move_all(self, operation: str, version: int) -> int:
        """One operation on every group there is, and all that was handed out is forgotten."""
        store = self._store
        keys = (store.applied, store.finished, store.open)
        group_ids = [group_id for key in keys for group_id in await store.group_ids(key)]
        moved = 0
        for some in chunks(group_ids):
            moved += int(await store.move(operation, some, version))
        self.redeliver()
        return moved

    def redeliver(self) -> None:
        """The learner lost what it had taken and continues from the ledger's own version: hand all of it out again."""
        self._held.clear()
        self._handled.clear()

    def _hand_out(self, count: int) -> Taken:
        groups = [self._held.pop(entry_id) for entry_id in list(self._held)[:count]]
        self._handled.update(group.entry_id for group in groups)
        taken = Taken(groups, self._stale, self._undecodable)
        self._stale, self._undecodable = [], []
        return taken

    async def _read(self, count: int, block_s: float) -> None:
        """Read up to `count` groups into `_held`: pending ones first, which also finds those whose reply was lost."""
        pending = await self._entries("0")
        self._handled &= {entry_id.decode() for entry_id, _ in pending}  # settled entries need no memory
        unknown = [e for e in pending if e[0].decode() not in self._handled and e[0].decode() not in self._held]
        for entry in unknown:
            if count > 0:
                count -= await self._load(entry)
        if count > 0:
            for entry in await self._entries(">", "COUNT", count, "BLOCK", round(1000 * block_s)):
                await self._load(entry)

    async def _entries(self, start: str, *options: str | int) -> list[_Entry]:
        read = ("XREADGROUP", "GROUP", _CONSUMERS, _CONSUMER, *options, "STREAMS", self._store.ready, start)
        answer = await self._store.command(*read)
        return list(answer[0][1]) if answer else []

    async def _load(self, entry: _Entry) -> int:
        """Fetch one entry's group into `_held`. Returns how many groups that added."""
        entry_id, fields = entry[0].decode(), entry[1]
        group_id = (fields or {}).get(b"group_id", b"").decode(errors="replace")
        record = self._store.record(group_id)
        state, task, oldest, newest = await self._store.command("HMGET", record, "state", "task", "oldest", "newest")
        if state == b"applied":  # consumed by an earlier life of this learner; waits for a checkpoint
            self._handled.add(entry_id)
            return 0
        if state is None:  # deleted behind our back: Redis 6.2 would keep the pending entry for ever
            await self._store.command("XACK", self._store.ready, _CONSUMERS, entry_id)
            await self._store.command("XDEL", self._store.ready, entry_id)
            return 0
        try:
            encoded = EncodedGroup(group_id=group_id, task=task, trajectories=await self._payloads(group_id))
            group = await asyncio.to_thread(decode_group, encoded)  # it takes long, and the loop has others to serve
        except WireError as error:
            await self._store.move("discard", [group_id], "dead_letter", str(error)[:500])
            self._undecodable.append((group_id, str(error)))
            return 0
        self._held[entry_id] = LeasedGroup(entry_id, group, encoded, int(oldest), int(newest))
        return 1

    async def _payloads(self, group_id: str) -> tuple[bytes, ...]:
        """Trajectories by index. Sizes are asked for first: what is too big is never loaded."""
        key = self._store.payload(group_id)
        found = await self._store.command("EVAL", _SIZES, 1, key)
        indices, largest = sorted(found[::2], key=int), max(found[1::2], default=0)
        if largest > self._max_entry_bytes:
            raise WireError("oversize", f"an episode takes {largest} bytes, the limit is {self._max_entry_bytes}")
        return tuple(await self._store.command("HMGET", key, *indices)) if indices else ()

    async def _discard_stale(self, version: int, max_staleness: int) -> None:
        stale = [g for g in self._held.values() if version - g.oldest > max_staleness or g.newest > version]
        if stale:
            gone: Sequence[str] = [group.group_id for group in stale]
            await self._store.move("discard", gone, "stale", "")
            for group in stale:
                self._stale.append(self._held.pop(group.entry_id).group)

    async def _who_is_missing(self, count: int, timeout_s: float) -> str:
        store = self._store
        running: list[str] = []
        opened = await store.group_ids(store.open)
        now = await store.now_ms()
        for group_id in opened[:_NAMED_IN_ERRORS]:
            since = float(await store.command("ZSCORE", store.open, group_id) or now)
            owner, results, size = await store.command("HMGET", store.record(group_id), "owner", "results", "size")
            holder = f"with {owner.decode()}" if owner else "without owner"
            running.append(
                f"{group_id} {holder} for {(now - since) / 1000:.0f} s, {int(results or 0)}/{int(size or 0)} done"
            )
        applied = int(await store.command("ZCARD", store.applied))
        paused: Any = await store.command("HEXISTS", store.ledger, "paused")
        parts = [
            f"waited {timeout_s:.0f} s for {count} ready groups, have {len(self._held)}",
            f"{len(opened)} in play" + (f" (oldest: {'; '.join(running)})" if running else ""),
            f"{applied} consumed and waiting for a checkpoint",
            f"{int(await store.command('HGET', store.ledger, 'bytes') or 0)} bytes held",
        ]
        return ", ".join(parts + ["issue is paused"] * bool(paused))
