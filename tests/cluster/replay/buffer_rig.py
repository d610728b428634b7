"""One run on a real Redis, and the trajectories to fill it with."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import Redis

from milepost.cluster.replay.buffer import BufferConfig, TrajectoryBuffer
from milepost.cluster.replay.client import Client, connect
from milepost.cluster.replay.ledger import Ledger
from milepost.cluster.replay.ready import Taken
from milepost.cluster.replay.store import Store
from milepost.cluster.replay.wire import EncodedGroup, encode, encode_task
from milepost.envs.types import Boundary, Failure, Group, Task, Trajectory, Turn, VersionSpan

_RUNS = itertools.count()


def task(seed: int = 0) -> Task:
    return Task(env="tests.envs:Lake", seed=seed, split="train", options={"size": 4})


def trajectory(group_id: str, index: int, *, oldest: int = 0, newest: int | None = None, tokens: int = 2) -> Trajectory:
    newest = oldest if newest is None else newest
    spans = [VersionSpan(version=oldest, start=0, end=1), VersionSpan(version=newest, start=1, end=tokens)]
    turn = Turn(
        prompt_ids=[1, 2],
        response_ids=[7] * tokens,
        logprobs=[-0.5] * tokens,
        versions=spans,
        anchor="a",
        next_anchor="b",
        action="left",
        reward=float(index),
    )
    return Trajectory(task=task(), group_id=group_id, index=index, turns=[turn], outcome="success")


def encoded(group: Group) -> EncodedGroup:
    return EncodedGroup(
        group_id=group.group_id, task=encode_task(group.task), trajectories=tuple(map(encode, group.trajectories))
    )


def ids(taken: Taken) -> list[str]:
    return [group.group_id for group in taken.groups]


def failure(group_id: str, index: int, boundary: Boundary = "env") -> Failure:
    return Failure(task=task(), group_id=group_id, index=index, boundary=boundary, error="ValueError", message="no")


@dataclass
class Rig:
    link: Client
    run_id: str
    config: BufferConfig
    ledger: Ledger
    buffer: TrajectoryBuffer
    store: Store

    @property
    def client(self) -> Redis:
        """The bare connection."""
        return self.link.connection

    async def issue(self, group_id: str, size: int = 2, owner: str = "worker-1", lease_s: float = 60.0) -> bool:
        return await self.ledger.issue(task=task(), group_id=group_id, size=size, owner=owner, lease_s=lease_s)

    async def fill(self, group_id: str, size: int = 2, *, oldest: int = 0, newest: int | None = None) -> None:
        assert await self.issue(group_id, size)
        for index in range(size):
            assert await self.buffer.put(trajectory(group_id, index, oldest=oldest, newest=newest)) == "ok"

    async def take(self, count: int, *, version: int = 0, max_staleness: int = 8, timeout_s: float = 5.0):
        return await self.buffer.take(count, version=version, max_staleness=max_staleness, timeout_s=timeout_s)

    def restarted_learner(self) -> TrajectoryBuffer:
        return TrajectoryBuffer(self.link, self.run_id, self.config)

    async def counts(self) -> dict[str, int]:
        balance = await self.ledger.balance()
        assert balance.holds, balance
        assert await self.recount() == {s: balance.counts[s] for s in ("issued", "running", "finished", "applied")}
        return {state: n for state, n in balance.counts.items() if n}

    async def recount(self) -> dict[str, int]:
        """Episodes of living groups by state, counted from the records and payloads themselves."""
        found = Counter({"issued": 0, "running": 0, "finished": 0, "applied": 0})
        size_bytes = in_system = 0
        for key in (self.store.open, self.store.finished, self.store.applied):
            for group_id in await self.store.group_ids(key):
                record = await self.client.hgetall(self.store.record(group_id))
                payloads = await self.client.hgetall(self.store.payload(group_id))
                state = record[b"state"].decode()
                survivors = [k for k, v in record.items() if k.startswith(b"episode:") and v == b"finished"]
                assert len(survivors) == len(payloads) == int(record[b"survivors"])
                found["applied" if state == "applied" else "finished"] += len(survivors)
                if state in ("issued", "running"):
                    found[state] += int(record[b"size"]) - int(record[b"results"])
                size_bytes += sum(map(len, payloads.values()))
                in_system += state != "applied"
        assert int(await self.client.hget(self.store.ledger, "bytes") or 0) == size_bytes
        assert int(await self.client.hget(self.store.ledger, "in_system") or 0) == in_system
        assert await self.client.xlen(self.store.ready) == await self.client.zcard(
            self.store.finished
        ) + await self.client.zcard(self.store.applied)
        pending = await self.client.xpending(self.store.ready, "learner")
        assert pending["pending"] <= await self.client.xlen(self.store.ready)
        return dict(found)


@asynccontextmanager
async def rig(
    url: str, *, groups_per_update: int = 1000, max_staleness: int = 8, run_id: str = "", **limits: object
) -> AsyncIterator[Rig]:
    config = BufferConfig(max_groups=limits.pop("max_groups", 10_000), **limits)
    run_id = run_id or f"run-{next(_RUNS)}"
    client = connect(url)
    ledger = Ledger(client, run_id)
    await ledger.configure(groups_per_update=groups_per_update, max_staleness=max_staleness, limits=config)
    try:
        yield Rig(client, run_id, config, ledger, TrajectoryBuffer(client, run_id, config), Store(client, run_id))
    finally:
        await client.aclose()


class CuttingProxy:
    """Passes bytes to Redis and back, but may close a connection instead of passing a reply: the reply is lost."""

    def __init__(self, url: str, *, cut_share: float = 0.0, seed: int = 0) -> None:
        parts = urlsplit(url)
        self._port = parts.port
        self._parts = parts
        self._random = random.Random(seed)
        self.cut_share = cut_share
        self.cut_replies_to = b""
        """Lose the next reply to a request that holds these bytes."""
        self.cuts = 0

    async def __aenter__(self) -> "CuttingProxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = urlunsplit(self._parts._replace(netloc=self._parts.netloc.replace(str(self._port), str(port))))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        redis_in, redis_out = await asyncio.open_connection("127.0.0.1", self._port, limit=2**24)
        doomed = False

        async def upstream() -> None:
            nonlocal doomed
            while data := await client_in.read(2**20):
                if self.cut_replies_to and self.cut_replies_to in data:
                    self.cut_replies_to, doomed = b"", True
                redis_out.write(data)
                await redis_out.drain()
            redis_out.close()

        passing = asyncio.ensure_future(upstream())
        try:
            while data := await redis_in.read(2**20):
                if doomed or self._random.random() < self.cut_share:
                    self.cuts += 1
                    break
                client_out.write(data)
                await client_out.drain()
        finally:
            passing.cancel()
            client_out.close()
            redis_out.close()
