"""Where a run's groups live in Redis, and the one script that moves them.

All keys of a run carry one hash tag, so they stay together on a Redis Cluster too. The script is states.lua and
moves.lua; Ledger and TrajectoryBuffer are two views of what it keeps. Only whole calls are atomic: two calls are two
moves.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from milepost.cluster.replay.client import Argument, BufferRefused, Client, ScriptUnknown

_FOLDER = resources.files("milepost.cluster.replay")
_SCRIPT = (_FOLDER / "states.lua").read_text() + (_FOLDER / "moves.lua").read_text()
_SCRIPT_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()
_CHUNK = 200
_RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Store:
    """The keys of one run and the calls on them. `client` is made by `connect`."""

    def __init__(self, client: Client, run_id: str) -> None:
        if _RUN_ID.fullmatch(run_id) is None:
            raise BufferRefused(f"run id {run_id!r} must be 1 to 64 letters, digits, dots, underscores or dashes")
        self._client = client
        self.run_id = run_id
        self.ledger, self.counts = self._key("ledger"), self._key("counts")
        self.ready, self.dead = self._key("ready"), self._key("dead")
        self.open, self.lease, self.reissue = self._key("open"), self._key("lease"), self._key("reissue")
        self.finished, self.applied = self._key("finished"), self._key("applied")
        self.drawn, self.free = self._key("drawn"), self._key("free")
        self.failures = self._key("failures")

    def _key(self, name: str) -> str:
        return f"mp:{{{self.run_id}}}:{name}"

    @property
    def pattern(self) -> str:
        """What all keys of the run match, and no other run's."""
        return self._key("*")

    def record(self, group_id: str) -> str:
        """Key of the hash that says where a group stands."""
        return self._key(f"group:{group_id}")

    def payload(self, group_id: str) -> str:
        """Key of the hash that holds a group's trajectories by index."""
        return self._key(f"payload:{group_id}")

    async def move(self, operation: str, group_ids: Sequence[str], *arguments: Argument) -> Any:
        """Run one operation of moves.lua on `group_ids`, atomically. Raises as `command` does."""
        keys = [self.ledger, self.counts, self.ready, self.dead, self.open]
        keys += [self.lease, self.reissue, self.finished, self.applied, self.drawn, self.free]
        for group_id in group_ids:
            keys += [self.record(group_id), self.payload(group_id)]
        call = (len(keys), *keys, operation, len(group_ids), *group_ids, *arguments)
        try:
            return await self.command("EVALSHA", _SCRIPT_SHA, *call)
        except ScriptUnknown:
            return await self.command("EVAL", _SCRIPT, *call)

    async def command(self, *words: Argument) -> Any:
        """Run one Redis command; see `Client.command`."""
        return await self._client.command(*words)

    async def group_ids(self, key: str) -> list[str]:
        """Members of a sorted set of groups, lowest score first."""
        members = await self.command("ZRANGE", key, 0, -1)
        return [member.decode() for member in members]

    async def now_ms(self) -> int:
        """The run's clock, which `Ledger.tick` moves. Leases and ages are measured by this one clock only."""
        return int(await self.command("HGET", self.ledger, "clock_ms") or 0)


def chunks(group_ids: Sequence[str]) -> Iterable[Sequence[str]]:
    """Parts of `group_ids` short enough not to hold the server up; one empty part where there are none."""
    for start in range(0, max(len(group_ids), 1), _CHUNK):
        yield group_ids[start : start + _CHUNK]
