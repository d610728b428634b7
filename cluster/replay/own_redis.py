"""A Redis of the user's own, by URL: what it must be before a run begins, and how a run's keys leave it again.

The embedded server needs none of this: nobody else reaches it, and it goes with the run's folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from milepost.cluster.base.exits import DependencyLost
from milepost.cluster.replay.buffer import BufferConfig, TrajectoryBuffer
from milepost.cluster.replay.client import (
    BufferRefused,
    BufferUnavailable,
    Client,
    check_server,
    connect,
    serves_strangers,
)
from milepost.cluster.replay.ledger import Ledger
from milepost.cluster.replay.store import Store
from milepost.envs.types import Task, Trajectory, Turn, VersionSpan

_SCANNED = 1000
_REFRESH_EVERY_S = 60.0
_REFRESH_FROM = 0.95
"""Share of the expiry that a key may have left when its time is started again: not every key every minute."""


@dataclass(frozen=True)
class Removed:
    """What a run had left in Redis."""

    keys: int
    bytes: int
    """Of trajectories."""


async def check_url(url: str, config: BufferConfig) -> None:
    """Refuse what would fail a run later, on a connection of its own: the server, its openness, the user's rights.

    Raises BufferRefused, or BufferUnavailable where it does not answer or has no room now.
    """
    client = connect(url)
    try:
        await check_server(client, maxmemory_bytes=config.maxmemory_bytes)
        if not config.allow_no_password and not is_loopback(url) and await serves_strangers(url):
            raise BufferRefused(
                "Redis serves everybody who reaches it, without a password, and trajectories can be read and forged "
                "there: set one (ACL SETUSER or requirepass), or buffer.allow_no_password = true in a closed network"
            )
        await _try_everything(client, config)
    finally:
        await client.aclose()


async def keep_from_expiry(client: Client, run_id: str, *, expiry_s: float) -> None:
    """As long as it is not cancelled, no key of the run expires; returns at once where none would (0)."""
    while expiry_s:
        await refresh_expiry(client, run_id, expiry_s=expiry_s)
        await asyncio.sleep(_REFRESH_EVERY_S)


async def refresh_expiry(client: Client, run_id: str, *, expiry_s: float) -> None:
    """A run lives: let none of its keys expire before `expiry_s` from about now."""
    store = Store(client, run_id)
    async for key in _keys(store):
        if int(await store.command("TTL", key)) < _REFRESH_FROM * expiry_s:
            await store.command("EXPIRE", key, round(expiry_s))


async def remove(url: str, run_id: str) -> Removed:
    """Delete everything that a run has in the Redis behind `url`. Raises BufferUnavailable, BufferRefused."""
    client = connect(url)
    try:
        return await _remove(Store(client, run_id))
    finally:
        await client.aclose()


def is_loopback(url: str) -> bool:
    """Whether only this machine can be at the other end."""
    parts = urlsplit(url)
    if parts.scheme == "unix" or parts.hostname in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(parts.hostname)).is_loopback
    except ValueError:
        return False


async def _remove(store: Store) -> Removed:
    size = int(await store.command("HGET", store.ledger, "bytes") or 0)
    keys = [key async for key in _keys(store)]
    for start in range(0, len(keys), _SCANNED):
        await store.command("UNLINK", *keys[start : start + _SCANNED])
    return Removed(len(set(keys)), size)


async def _keys(store: Store) -> AsyncIterator[bytes]:
    cursor = 0
    while True:
        cursor, found = await store.command("SCAN", cursor, "MATCH", store.pattern, "COUNT", _SCANNED)
        for key in found:
            yield key
        if not cursor:
            return


async def _try_everything(client: Client, config: BufferConfig) -> None:
    """One episode from issue to settlement, under a run of its own: each command and key that a user needs."""
    run_id = f"trial-{secrets.token_hex(8)}"
    store, ledger = Store(client, run_id), Ledger(client, run_id)
    buffer = TrajectoryBuffer(client, run_id, config)
    task = Task(env="trial", seed=0, split="train")
    turn = Turn(
        prompt_ids=[0],
        response_ids=[0],
        logprobs=[0.0],
        versions=[VersionSpan(version=0, start=0, end=1)],
        anchor="",
        next_anchor="",
        action="",
        reward=0.0,
    )
    played = Trajectory(task=task, group_id="trial", index=0, turns=[turn], outcome="success")
    try:
        await ledger.configure(groups_per_update=1, max_staleness=0, limits=config)
        if not await ledger.issue(task=task, group_id="trial", size=1, owner="trial", lease_s=60):
            raise BufferUnavailable("Redis is at its memory limit: make room in it, or raise maxmemory")
        await ledger.renew(["trial"], "trial", 60)
        await buffer.put(played)
        await buffer.take(1, version=0, max_staleness=0, timeout_s=5)
        await buffer.commit(1, {"trial": "trained"})
        await buffer.settle(1)
        await refresh_expiry(client, run_id, expiry_s=config.expiry_s)
    except BaseException:
        with contextlib.suppress(DependencyLost):  # the reason is the first one; what stays expires
            await _remove(store)
        raise
    await _remove(store)
