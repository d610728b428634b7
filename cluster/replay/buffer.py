"""The replay buffer: what workers store, and (with ReadyGroups) what the learner takes.

An episode is stored once per (group, index), however often it is delivered; a group is handed to the learner when every
episode has its result. Trajectories stay until a checkpoint holds the update that consumed them. The buffer is
bounded: a full one stores nothing and evicts nothing, and the producer waits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from milepost.cluster.replay.client import BufferFull, BufferRefused, BufferUnavailable, Client
from milepost.cluster.replay.ready import ReadyGroups
from milepost.cluster.replay.store import chunks
from milepost.cluster.replay.wire import MAX_BYTES, WireError, decode_failure, encode
from milepost.envs.types import Failure, Trajectory

logger = logging.getLogger(__name__)

PutResult = Literal["ok", "duplicate", "late", "full"]
_HIGH_WATER = 0.7
_FAILED_STATE = {"env": "env_failed", "reward": "env_failed", "engine": "infra_failed", "infra": "infra_failed"}
_LONGEST_PAUSE_S = 1.0
_LONGEST_CAUSE = 400
_FAILURES_KEPT = 1000


class BufferConfig(BaseModel):
    """Where the replay buffer is, and its limits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url_env: str = Field("", description="Environment variable that holds the Redis URL; empty: an embedded server")
    allow_no_password: bool = Field(
        False, description="Password rule: whether a Redis by URL may serve, beyond this machine, whoever reaches it"
    )
    expiry_days: float = Field(
        7.0, gt=0, description="Expiry in days after which a Redis by URL forgets a run that nobody drives"
    )
    max_bytes: int = Field(
        1024**3, ge=1024, description="Buffer capacity in bytes of trajectories held, ready and consumed together"
    )
    max_groups: int = Field(1024, ge=1, description="Buffer capacity in groups that are ready and wait for the learner")
    max_entry_bytes: int = Field(MAX_BYTES, ge=1024, description="Entry size limit in bytes, of one trajectory")
    lease_s: float = Field(
        60.0, gt=0, description="Lease in seconds: a group whose owner is silent for so long is issued again"
    )
    group_deadline_s: float = Field(
        1800.0, gt=0, description="Group deadline in seconds: one that runs longer closes with what it has"
    )
    max_attempts: int = Field(
        3, ge=1, description="Attempt limit: how often a group is issued before its missing episodes are given up"
    )
    put_timeout_s: float = Field(
        600.0, gt=0, description="Put timeout in seconds: how long a worker waits for room, or for Redis to return"
    )

    @property
    def url(self) -> str:
        """Address of the Redis to use, "" for an embedded one. It may hold a password: never log or save it.

        Raises BufferRefused where the environment variable is not set.
        """
        if not self.url_env:
            return ""
        url = os.environ.get(self.url_env, "")
        if not url:
            raise BufferRefused(f"buffer.url_env names {self.url_env}, which is not set: export the Redis URL in it")
        return url

    @property
    def expiry_s(self) -> float:
        """Seconds that a key stays without a driver; 0 for the embedded server, which goes with the run's folder."""
        return 86_400 * self.expiry_days if self.url_env else 0.0

    @property
    def high_water_bytes(self) -> int:
        """Bytes held from which on nothing is issued."""
        return int(_HIGH_WATER * self.max_bytes)

    @property
    def consumed_bytes_limit(self) -> int:
        """Bytes consumed since the last checkpoint from which on it can't wait: they keep new groups from issue."""
        return self.high_water_bytes // 2

    @property
    def maxmemory_bytes(self) -> int:
        """Memory limit of an embedded server: payloads cost up to 1.22 times their bytes, records the rest."""
        return int(1.25 * self.max_bytes) + 64 * 1024**2


@dataclass(frozen=True)
class Depth:
    """What the buffer holds now."""

    ready_groups: int
    """Closed groups not yet consumed, taken ones included."""
    applied_groups: int
    """Consumed by an update that no checkpoint holds yet."""
    open_groups: int
    """Issued and not closed."""
    bytes: int
    """Trajectory bytes of all of them."""
    oldest_ready_s: float
    """Age of the oldest ready group since it closed; 0 where there is none."""


class TrajectoryBuffer(ReadyGroups):
    """One run's buffer. Workers put, the learner takes, commits and settles; each call can be repeated."""

    def __init__(self, client: Client, run_id: str, config: BufferConfig) -> None:
        super().__init__(client, run_id, max_entry_bytes=config.max_entry_bytes)
        self._config = config

    async def put(self, trajectory: Trajectory) -> PutResult:
        """Store one finished episode and close its group if it was the last one missing.

        "duplicate": it was stored before. "late": its group is over, or weights of an abandoned history sampled it.
        "full": nothing was stored; wait and put it again. Raises WireError("oversize") for one that is too big,
        BufferRefused for an index outside the group, BufferUnavailable where Redis does not answer.
        """
        payload = encode(trajectory, max_bytes=self._config.max_entry_bytes)
        versions = (trajectory.oldest_version, trajectory.newest_version)
        return await self._put(trajectory.group_id, trajectory.index, "finished", payload, versions)

    async def put_failure(self, failure: Failure) -> PutResult:
        """Record that an episode failed: env and reward as env_failed, engine and infra as infra_failed."""
        said = f"{failure.boundary}: {failure.error}: {failure.message}"[:_LONGEST_CAUSE]
        await self._store.command("HSET", self._store.ledger, "last_failure", said)
        await self._store.command("RPUSH", self._store.failures, encode(failure))
        await self._store.command("LTRIM", self._store.failures, -_FAILURES_KEPT, -1)
        return await self._put(failure.group_id, failure.index, _FAILED_STATE[failure.boundary], b"", (0, 0))

    async def take_failures(self) -> list[tuple[Failure, str]]:
        """What failed since the last call, with the state it was counted as; the newest if there were very many.

        For meters only: a put that was repeated may be listed twice, and what cannot be decoded is left out with a
        line in the log.
        """
        listed = await self._store.command("LPOP", self._store.failures, _FAILURES_KEPT)
        failures = []
        for data in listed or []:
            try:
                failures.append(decode_failure(data))
            except WireError as error:
                logger.warning("an entry of the list of failed episodes is left out: %s", error)
        return [(failure, _FAILED_STATE[failure.boundary]) for failure in failures]

    async def put_with_backpressure(self, record: Trajectory | Failure) -> PutResult:
        """Put either kind, and wait while the buffer is full or Redis away.

        Waits `put_timeout_s` of the config at most; then raises BufferUnavailable, which says what it waited for.
        """
        limit_s = self._config.put_timeout_s
        end, pause_s = time.monotonic() + limit_s, 0.05
        while True:
            try:
                result = await (self.put(record) if isinstance(record, Trajectory) else self.put_failure(record))
                if result != "full":
                    return result
                reason = f"the buffer is full ({self._config.max_groups} groups or {self._config.max_bytes} bytes)"
            except BufferUnavailable as error:
                reason = str(error)
            if time.monotonic() + pause_s > end:
                episode = f"episode {record.index} of group {record.group_id}"
                raise BufferUnavailable(f"{episode} waited {limit_s:.0f} s to be stored: {reason}")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def close_overdue(self) -> int:
        """Close groups issued longer ago than `group_deadline_s` of the config. Returns how many closed.

        With two survivors (one in a group of one) the missing episodes become infra_failed and the group is ready. With
        fewer, its owner loses the lease, so that `Ledger.reclaim` gives the group to another.
        """
        limit_ms = round(1000 * self._config.group_deadline_s)
        closed, now = 0, await self._store.now_ms()
        old = await self._store.command("ZRANGEBYSCORE", self._store.open, "-inf", f"({now - limit_ms}")
        for some in chunks([group_id.decode() for group_id in old]):
            closed += int(await self._store.move("overdue", some, limit_ms))
        return closed

    async def depth(self) -> Depth:
        """What the buffer holds now, for metrics and for the one who decides about a checkpoint."""
        store = self._store
        ready, applied, opened = [
            int(await store.command("ZCARD", k)) for k in (store.finished, store.applied, store.open)
        ]
        oldest = await store.command("ZRANGE", store.finished, 0, 0, "WITHSCORES")
        age_ms = (
            await store.now_ms() - float(oldest[0][1] if isinstance(oldest[0], tuple) else oldest[1]) if oldest else 0
        )
        size = int(await store.command("HGET", store.ledger, "bytes") or 0)
        return Depth(ready, applied, opened, size, max(0.0, age_ms / 1000))

    async def _put(
        self, group_id: str, index: int, result: str, payload: bytes, versions: tuple[int, int]
    ) -> PutResult:
        limits = (self._config.max_bytes, self._config.max_groups)
        try:
            answer = await self._store.move("put", [group_id], index, result, payload, *versions, *limits)
        except BufferFull:
            return "full"
        match answer:
            case b"ok":
                return "ok"
            case b"duplicate":
                return "duplicate"
            case b"late":
                return "late"
            case b"full":
                return "full"
        raise BufferRefused(f"episode {index} is outside of group {group_id}: indices run from 0 to its size - 1")
