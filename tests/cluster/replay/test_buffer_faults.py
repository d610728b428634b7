import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

from milepost.cluster.replay import redis_server
from milepost.cluster.replay.client import BufferUnavailable, connect_sync
from milepost.cluster.replay.ready import NothingReady
from tests.cluster.replay.buffer_rig import CuttingProxy, Rig, failure, ids, rig, trajectory


def test_at_the_memory_limit_nothing_is_evicted_and_the_learner_can_still_drain(tmp_path: Path) -> None:
    async def fill(url: str) -> None:
        async with rig(url) as run:
            whole = 0
            while await run.issue(f"g{whole}", 1):
                if await run.buffer.put(trajectory(f"g{whole}", 0, tokens=10_000)) == "full":
                    break
                whole += 1
            assert whole > 5
            used = (await run.client.info("memory"))["used_memory"]
            await run.client.config_set("maxmemory", used // 2)  # no write that may need memory passes any more
            assert not await run.issue("another")
            assert await run.buffer.put(trajectory(f"g{whole}", 0)) == "full"
            assert len(ids(await run.take(whole))) == whole
            await run.buffer.commit(1, {f"g{i}": "trained" for i in range(whole)})
            assert await run.buffer.settle(1) == whole
            await run.client.config_set("maxmemory", used)
            assert await run.buffer.put(trajectory(f"g{whole}", 0, tokens=10_000)) == "ok"
            assert await run.counts() == {"trained": whole, "finished": 1}

    with redis_server.start(tmp_path, maxmemory_bytes=4 * 1024**2) as server:
        asyncio.run(fill(server.url))


def test_a_lost_reply_stores_and_delivers_once(redis_url: str) -> None:
    async def lose() -> None:
        async with CuttingProxy(redis_url) as proxy, rig(proxy.url) as run:
            await run.issue("g")
            assert await run.buffer.put(trajectory("g", 0)) == "ok"
            proxy.cut_replies_to = b"EVALSHA"
            assert await run.buffer.put(trajectory("g", 1)) == "duplicate"  # the first one had been heard
            assert proxy.cuts == 1
            proxy.cut_replies_to = b"\r\n>\r\n"  # the read of new entries
            assert ids(await run.take(1)) == ["g"]
            assert proxy.cuts == 2
            proxy.cut_replies_to = b"commit"
            await run.buffer.commit(1, {"g": "trained"})
            proxy.cut_replies_to = b"settle"
            await run.buffer.settle(1)
            assert proxy.cuts == 4
            assert await run.counts() == {"trained": 2}

    asyncio.run(lose())


async def train_all(run: Rig, groups: int) -> Counter[str]:
    """Issue, play, take, commit and settle every group; each call is repeated until it is answered."""

    async def surely(call):
        for _ in range(50):
            try:
                return await call()
            except BufferUnavailable:
                continue
        raise AssertionError("never answered")

    trained: Counter[str] = Counter()
    for i in range(groups):
        name = f"g{i}"
        assert await surely(lambda name=name: run.issue(name))
        for index in (0, 1):
            episode = trajectory(name, index)
            assert await surely(lambda episode=episode: run.buffer.put(episode)) in ("ok", "duplicate")
    for version in range(1, groups // 2 + 1):
        taken = await surely(lambda v=version: run.take(2, version=v - 1, max_staleness=99, timeout_s=20))
        trained.update(ids(taken))
        await surely(lambda t=taken, v=version: run.buffer.commit(v, dict.fromkeys(ids(t), "trained")))
        await surely(lambda v=version: run.buffer.settle(v))
    return trained


def test_with_replies_lost_at_random_every_group_is_trained_once(redis_url: str) -> None:
    async def lose() -> None:
        async with CuttingProxy(redis_url, seed=1) as proxy, rig(proxy.url) as run:
            proxy.cut_share = 0.15
            trained = await train_all(run, 20)
            proxy.cut_share = 0.0
            assert proxy.cuts > 15
            assert trained == Counter({f"g{i}": 1 for i in range(20)})
            assert await run.counts() == {"trained": 40}

    asyncio.run(lose())


def test_a_killed_redis_loses_nothing_and_everybody_finds_it_again(tmp_path: Path) -> None:
    async def live(server: redis_server.RedisServer) -> None:
        async with rig(server.url) as run:
            for i in range(20):
                await run.fill(f"g{i}")
            await run.take(5)
            await run.buffer.commit(1, {f"g{i}": "trained" for i in range(3)})
            await run.issue("open")
            before = await run.counts()
            victim = server._process.pid
            os.kill(victim, signal.SIGKILL)
            psutil.wait_procs([psutil.Process(victim)], timeout=5)
            assert not psutil.pid_exists(victim)
            with pytest.raises(BufferUnavailable, match="Redis does not answer"):
                await run.ledger.balance()
            putting = asyncio.ensure_future(run.buffer.put_with_backpressure(trajectory("open", 0)))
            learner = run.restarted_learner()
            taking = asyncio.ensure_future(learner.take(17, version=1, max_staleness=8, timeout_s=60))
            await asyncio.sleep(1.0)
            assert not putting.done()
            assert not taking.done()
            server.revive()
            assert await putting == "ok"
            assert ids(await taking) == [f"g{i}" for i in range(3, 20)]  # the two that were taken come first
            assert await run.counts() == {**before, "finished": before["finished"] + 1, "issued": 1}

    with redis_server.start(tmp_path) as server:
        asyncio.run(live(server))


def test_a_redis_that_stays_away_is_reported_as_such(tmp_path: Path) -> None:
    async def live(server: redis_server.RedisServer) -> None:
        async with rig(server.url, put_timeout_s=1.0) as run:
            server.stop()
            with pytest.raises(BufferUnavailable, match=r"waited 1 s for 1 ready groups: Redis does not answer"):
                await run.take(1, timeout_s=1.0)
            with pytest.raises(BufferUnavailable, match="episode 0 of group g waited 1 s to be stored: Redis does not"):
                await run.buffer.put_with_backpressure(trajectory("g", 0))

    with redis_server.start(tmp_path) as server:
        asyncio.run(live(server))


class Chaos:
    """Random operations of workers, supervisor and learner on one run, and what the learner's history says of them."""

    def __init__(self, run: Rig, seed: int) -> None:
        self.run, self.chance = run, random.Random(seed)
        self.learner = run.buffer
        self.version = self.saved = self.issued = 0
        self.consumed: dict[int, list[str]] = {}  # by the version that consumed them, in the surviving history

    def episode(self) -> tuple[str, int]:
        return f"g{self.chance.randrange(max(1, self.issued))}", self.chance.randrange(3)

    def owner(self) -> str:
        return f"w{self.chance.randrange(3)}"

    async def issue(self) -> None:
        self.issued += await self.run.issue(f"g{self.issued}", 3, owner=self.owner())

    async def put(self) -> None:
        oldest = max(0, self.version - self.chance.randrange(5))
        await self.run.buffer.put(trajectory(*self.episode(), oldest=oldest, newest=self.version))

    async def fail(self) -> None:
        await self.run.buffer.put_failure(failure(*self.episode(), self.chance.choice(["env", "infra"])))

    async def start(self) -> None:
        await self.run.ledger.renew([self.episode()[0]], self.owner(), 60.0)

    async def release(self) -> None:
        await self.run.ledger.release_owner(self.owner())

    async def reclaim(self) -> None:
        await self.run.ledger.reclaim()

    async def adopt(self) -> None:
        await self.run.ledger.adopt(self.owner(), 60.0)

    async def overdue(self) -> None:
        await self.run.ledger.tick()
        await self.run.buffer.close_overdue()

    async def update(self) -> None:
        with contextlib.suppress(NothingReady):
            count = self.chance.randrange(1, 3)
            taken = await self.learner.take(count, version=self.version, max_staleness=3, timeout_s=0.01)
            self.version += 1
            self.consumed[self.version] = ids(taken)
            outcomes = {name: self.chance.choice(["trained", "filtered"]) for name in ids(taken)}
            await self.learner.commit(self.version, outcomes)

    async def settle(self) -> None:
        await self.learner.settle(self.version)
        self.saved = self.version

    async def restart(self) -> None:
        self.learner = self.run.restarted_learner()

    async def crash(self) -> None:
        await self.restart()
        self.version = self.saved
        await self.learner.rollback(self.saved)
        self.consumed = {version: names for version, names in self.consumed.items() if version <= self.saved}

    async def finish(self) -> None:
        """The workers are gone, and what they left open is given up; the learner takes what is there."""
        for _ in range(3):
            for owner in ("w0", "w1", "w2"):
                await self.run.ledger.release_owner(owner)
            await self.reclaim()
            while await self.run.ledger.adopt("w0", 60.0):
                pass
        while (await self.run.buffer.depth()).ready_groups:
            await self.update()
        await self.settle()


@pytest.mark.parametrize("seed", range(6))
def test_after_any_sequence_of_operations_every_episode_is_in_one_state(redis_url: str, seed: int) -> None:
    async def operate() -> None:
        async with rig(redis_url, max_attempts=2, group_deadline_s=0.001) as run:
            chaos = Chaos(run, seed)
            often = [chaos.issue] * 4 + [chaos.put] * 10 + [chaos.update] * 3
            rare = [chaos.fail, chaos.start, chaos.release, chaos.reclaim, chaos.adopt, chaos.overdue]
            for operation in chaos.chance.choices([*often, *rare, chaos.settle, chaos.restart, chaos.crash], k=150):
                await operation()
                await run.counts()
            await chaos.finish()
            counts = await run.counts()
            assert set(counts) <= {"trained", "stale", "filtered", "env_failed", "infra_failed"}
            assert sum(counts.values()) == 3 * chaos.issued
            times = Counter(name for names in chaos.consumed.values() for name in names)
            assert set(times.values()) == {1}

    asyncio.run(operate())


def test_what_a_killed_redis_had_acknowledged_is_in_its_file(tmp_path: Path) -> None:
    """The producer is cut off in the middle: what it was told is stored must be there, and no more than one beyond."""

    async def produce(server: redis_server.RedisServer) -> int:
        async with rig(server.url, run_id="killed") as run:
            acknowledged = 0
            for i in range(10_000):
                try:
                    await run.issue(f"g{i}", 1)
                    assert await run.buffer.put(trajectory(f"g{i}", 0)) == "ok"
                except BufferUnavailable:
                    break
                acknowledged += 1
                if i == 150:
                    asyncio.get_running_loop().call_later(0.05, os.kill, server._process.pid, signal.SIGKILL)
            return acknowledged

    with redis_server.start(tmp_path) as server:
        acknowledged = asyncio.run(produce(server))
        assert not server.alive
        assert 150 < acknowledged < 10_000
        server.revive()
        stored = connect_sync(server.url).xlen("mp:{killed}:ready")
        assert acknowledged <= stored <= acknowledged + 1
