"""The ledger of a run: which groups were issued, who plays them, and the balance of every episode.

Issue follows AReaL's capacity formula (arXiv 2505.24298), so that groups consumed in the order of issue are never older
than the allowed staleness; a straggler that others overtake can be, and is dropped where it is taken. A crash of a
worker, the driver or Redis loses no group: what nobody renews is issued again. The ledger does not know who is alive:
leases do.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from milepost.cluster.replay.buffer import BufferConfig
from milepost.cluster.replay.client import BufferFull, BufferRefused, Client
from milepost.cluster.replay.store import Store, chunks
from milepost.cluster.replay.wire import decode_task, encode_task
from milepost.envs.types import Task

State = Literal[
    "issued",
    "running",
    "finished",
    "applied",
    "trained",
    "stale",
    "filtered",
    "env_failed",
    "infra_failed",
    "dead_letter",
]
_LONGEST_TICK_S = 5.0
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class Balance:
    """Episodes issued so far, and how many of them are in each state now."""

    issued_total: int
    counts: Mapping[State, int]

    @property
    def missing(self) -> int:
        """Issued episodes that are in no state; negative: episodes in a state that were never issued."""
        return self.issued_total - sum(self.counts.values())

    @property
    def failed(self) -> int:
        """Episodes that failed since the run began."""
        return self.counts["env_failed"] + self.counts["infra_failed"]

    @property
    def holds(self) -> bool:
        """Whether every issued episode is in exactly one state."""
        return self.missing == 0 and min(self.counts.values()) >= 0


@dataclass(frozen=True)
class Reissue:
    """A group whose owner left it. The episodes `missing` are to be played."""

    group_id: str
    task: Task
    missing: tuple[int, ...]


class Ledger:
    """One run's ledger. Every method raises BufferUnavailable where Redis does not answer; each can be repeated."""

    def __init__(self, client: Client, run_id: str) -> None:
        self._store = Store(client, run_id)
        self._clock_ms: int | None = None
        self._ticked_at = time.monotonic()

    async def configure(self, *, groups_per_update: int, max_staleness: int, limits: BufferConfig) -> None:
        """Set B (groups per update), eta (versions a group may lag) and the buffer's limits.

        Call it once at every start of the run, before workers start: it lifts a pause and takes back the sequence
        numbers that an earlier life left behind.

        Raises BufferRefused where the buffer could never hold one update's groups.
        """
        if groups_per_update < 1 or max_staleness < 0:
            raise BufferRefused(
                f"groups_per_update {groups_per_update} must be >= 1, max_staleness {max_staleness} >= 0"
            )
        if groups_per_update > limits.max_groups:
            raise BufferRefused(
                f"one update takes {groups_per_update} groups, buffer.max_groups is {limits.max_groups}: raise it"
            )
        settings = {
            "groups_per_update": groups_per_update,
            "max_staleness": max_staleness,
            "max_groups": limits.max_groups,
            "high_water_bytes": limits.high_water_bytes,
            "max_attempts": limits.max_attempts,
            "expiry_ms": round(1000 * limits.expiry_s),
        }
        await self._store.command("HSET", self._store.ledger, *(word for pair in settings.items() for word in pair))
        await self._store.move("prepare", [])

    async def issue(self, *, task: Task, group_id: str, size: int, owner: str, lease_s: float) -> bool:
        """Issue a group of `size` episodes to `owner` if there is room for it; False where there is none now.

        With I groups in the system (issued, not yet consumed, not over), B groups per update, learner version v,
        published version p and staleness bound eta, room is `I + (v - p) * B < (eta + 1) * B`. This is AReaL's
        capacity `(eta + p + 1) * B - (accepted + running) > 0`, because accepted + running = v * B + I: every update
        consumed B. A group issued now is, in order, consumed at version v + ceil((I + 1) / B) - 1 <= p + eta at most.
        There is no room either while issue is paused, or while the buffer is at its high-water mark.

        Raises BufferRefused where the id belongs to another group, or before `configure`.
        """
        if size < 1 or not group_id or not owner:
            raise BufferRefused(f"a group needs an id, an owner and a size >= 1: {group_id!r}, {owner!r}, {size}")
        try:
            answer = await self._store.move("issue", [group_id], encode_task(task), size, owner, _milliseconds(lease_s))
        except BufferFull:
            return False
        if answer == b"taken":
            raise BufferRefused(f"group {group_id} was issued before: a group id names one group of a run")
        if answer == b"unconfigured":
            raise BufferRefused(f"the ledger of run {self._store.run_id} knows no limits: call configure first")
        return bool(answer == b"ok")

    async def next_sequence(self, owner: str) -> int:
        """Number of the group that `owner` is to issue next, from 0; the same one until it issued a group.

        Numbers of owners that end without issuing are drawn again first, so a crash neither skips nor repeats a task.
        """
        return int(await self._store.move("draw", [], owner))

    async def renew(self, group_ids: Sequence[str], owner: str, lease_s: float) -> list[str]:
        """Prolong the owner's leases; an issued group counts as running from its first renewal on.

        Returns the groups that are not this owner's any more (closed, or given to another): stop playing them.
        """
        lost = await self._store.move("renew", group_ids, owner, _milliseconds(lease_s)) if group_ids else []
        return [group_id.decode() for group_id in lost]

    async def release_owner(self, owner: str) -> int:
        """End all leases of a dead owner now and take back its sequence number.

        Returns how many groups it held; `reclaim` makes them available.
        """
        await self._store.move("undraw", [], owner)
        held = [id_ for id_, name in (await self._owners()).items() if name == owner]
        lost = await self._store.move("renew", held, owner, 0) if held else []
        return len(held) - len(lost)

    async def release_all(self) -> None:
        """End every lease now: the driver starts again, so all owners are dead."""
        for owner in set((await self._owners()).values()):
            await self.release_owner(owner)

    async def tick(self) -> int:
        """Move the run's clock to now and return it, in milliseconds: for the driver alone, every second or so.

        It adds up what passed on the driver's monotonic clock since the last call, at most 5 s of it: a driver or a
        Redis that was away for longer kept the owners from renewing, and they get the time to. So no clock that is
        set, no pause and no restart takes a lease from an owner who lives.
        """
        now, base = time.monotonic(), self._clock_ms
        passed_ms = round(1000 * min(now - self._ticked_at, _LONGEST_TICK_S))
        clock_ms = (await self._store.now_ms() if base is None else base) + passed_ms
        await self._store.move("tick", [], clock_ms)
        self._clock_ms, self._ticked_at = clock_ms, now
        return clock_ms

    async def reclaim(self) -> list[Reissue]:
        """Make groups whose lease is over available to `adopt`; returns those, in the order of their lease ends.

        After the last attempt the missing episodes count as infra_failed and the group closes with what it has.
        """
        now = await self.tick()
        expired = await self._store.command("ZRANGEBYSCORE", self._store.lease, "-inf", now)
        reissues: list[Reissue] = []
        for some in chunks([group_id.decode() for group_id in expired]):
            reissues += [_reissue(row) for row in await self._store.move("expire", some)]
        return reissues

    async def adopt(self, owner: str, lease_s: float) -> Reissue | None:
        """Give the group that waits longest for a new owner to `owner`; None where none waits."""
        while True:
            waiting = await self._store.command("LINDEX", self._store.reissue, 0)
            if waiting is None:
                return None
            group_id = waiting.decode()
            attempts = int(await self._store.command("HGET", self._store.record(group_id), "attempt") or 0)
            row = await self._store.move("adopt", [group_id], owner, _milliseconds(lease_s), attempts + 1)
            if row is not None:
                return _reissue(row)

    async def pause(self) -> None:
        """Issue nothing until `resume`: the run is stopping, or waits for something."""
        await self._store.command("HSET", self._store.ledger, "paused", 1)

    async def resume(self) -> None:
        """Issue again after `pause`."""
        await self._store.command("HDEL", self._store.ledger, "paused")

    async def set_versions(self, *, version: int | None = None, published: int | None = None) -> None:
        """Set the learner's version, the published one, or both. `commit` and `rollback` set the learner's themselves.

        Nothing sampled by a version above the learner's is accepted: commit an update before its weights are published.
        """
        for name, value in (("version", version), ("published", published)):
            if value is not None:
                await self._store.command("HSET", self._store.ledger, name, value)

    async def version(self) -> int:
        """The learner's version; 0 where none was set."""
        return int(await self._store.command("HGET", self._store.ledger, "version") or 0)

    async def last_failure(self) -> str:
        """What the episode that failed last died of: boundary, error, message; empty if none did."""
        return (await self._store.command("HGET", self._store.ledger, "last_failure") or b"").decode()

    async def balance(self) -> Balance:
        """Episodes issued and episodes per state, read at one moment."""
        total, flat = await self._store.move("balance", [])
        found = {key.decode(): int(value) for key, value in zip(flat[::2], flat[1::2], strict=True)}
        return Balance(issued_total=int(total), counts={state: found.get(state, 0) for state in STATES})

    async def _owners(self) -> dict[str, str]:
        group_ids = await self._store.group_ids(self._store.lease)
        owners = [await self._store.command("HGET", self._store.record(id_), "owner") for id_ in group_ids]
        return {id_: (owner or b"").decode() for id_, owner in zip(group_ids, owners, strict=True)}


def _reissue(row: Sequence[Any]) -> Reissue:
    group_id, task, missing = row
    return Reissue(group_id=group_id.decode(), task=decode_task(task), missing=tuple(missing))


def _milliseconds(seconds: float) -> int:
    if seconds <= 0:
        raise BufferRefused(f"a lease must last longer than {seconds} s")
    return max(1, round(seconds * 1000))
