import asyncio

import pytest

from milepost.cluster.pools.ledger_source import BufferSink
from milepost.cluster.replay.buffer import BufferConfig, TrajectoryBuffer
from milepost.cluster.replay.client import BufferRefused, BufferUnavailable
from milepost.cluster.replay.wire import WireError, encode
from milepost.cluster.trajectories.recording import RecordingQueue
from tests.cluster.replay.buffer_rig import failure, ids, rig, trajectory


def test_delivered_twice_and_out_of_order_gives_the_same_group(redis_url: str) -> None:
    async def deliver() -> None:
        episodes = [trajectory("g", i, oldest=i, newest=i + 1) for i in range(4)]
        async with rig(redis_url) as run:
            await run.ledger.set_versions(version=9, published=9)
            assert await run.issue("g", 4)
            answers = [await run.buffer.put(episodes[i]) for i in (2, 0, 2, 3, 3, 1, 1, 0)]
            assert answers == ["ok", "ok", "duplicate", "ok", "duplicate", "ok", "duplicate", "duplicate"]
            ((_, fields),) = await run.client.xrange(run.store.ready)
            size = sum(len(encode(episode)) for episode in episodes)
            told = {b"group_id": b"g", b"survivors": b"4", b"oldest": b"0", b"newest": b"4"}
            assert fields == {**told, b"bytes": str(size).encode()}
            (group,) = (await run.take(1, version=9, max_staleness=9)).groups
            assert group.group.trajectories == episodes
            assert group.encoded.num_bytes == size
            assert (group.oldest, group.newest) == (0, 4)
            assert await run.counts() == {"finished": 4}

    asyncio.run(deliver())


def test_failed_episodes_are_counted_by_boundary_and_leave_the_survivors_comparable(redis_url: str) -> None:
    async def fail() -> None:
        async with rig(redis_url) as run:
            await run.issue("g", 6)
            for index, boundary in enumerate(("env", "reward", "engine", "infra")):
                assert await run.buffer.put_failure(failure("g", index, boundary)) == "ok"
            assert await run.buffer.put_failure(failure("g", 0)) == "duplicate"
            assert await run.buffer.put(trajectory("g", 0)) == "duplicate"  # the first result of an episode counts
            await run.buffer.put(trajectory("g", 4))
            await run.buffer.put(trajectory("g", 5))
            assert await run.counts() == {"finished": 2, "env_failed": 2, "infra_failed": 2}
            assert [t.index for t in (await run.take(1)).groups[0].group.trajectories] == [4, 5]
            told = [(f.index, state) for f, state in await run.buffer.take_failures()]
            assert told == [
                (0, "env_failed"),
                (1, "env_failed"),
                (2, "infra_failed"),
                (3, "infra_failed"),
                (0, "env_failed"),
            ]
            assert await run.buffer.take_failures() == []

    asyncio.run(fail())


def test_a_group_with_one_survivor_is_dropped_and_a_group_of_one_is_not(redis_url: str) -> None:
    async def survive() -> None:
        async with rig(redis_url) as run:
            await run.issue("pair", 2)
            await run.buffer.put(trajectory("pair", 0))
            await run.buffer.put_failure(failure("pair", 1))
            assert await run.counts() == {"filtered": 1, "env_failed": 1}
            await run.fill("single", 1)
            assert ids(await run.take(1)) == ["single"]

    asyncio.run(survive())


def test_what_comes_for_a_group_that_is_over_is_late(redis_url: str) -> None:
    async def late() -> None:
        async with rig(redis_url) as run:
            await run.fill("g")
            await run.take(1)
            await run.buffer.commit(1, {"g": "trained"})
            assert await run.buffer.put(trajectory("g", 0)) == "duplicate"
            await run.buffer.settle(1)
            assert await run.buffer.put(trajectory("g", 0)) == "late"
            assert await run.buffer.put_failure(failure("g", 1)) == "late"
            assert await run.counts() == {"trained": 2}

    asyncio.run(late())


def test_an_index_outside_the_group_is_refused(redis_url: str) -> None:
    async def outside() -> None:
        async with rig(redis_url) as run:
            await run.issue("g", 2)
            with pytest.raises(BufferRefused, match="episode 2 is outside of group g"):
                await run.buffer.put(trajectory("g", 2))

    asyncio.run(outside())


def test_a_trajectory_that_is_too_large_ends_as_a_failure_and_the_worker_goes_on(redis_url: str) -> None:
    async def sink() -> None:
        async with rig(redis_url, max_entry_bytes=1024) as run:
            await run.issue("g", 3)
            recordings = RecordingQueue()
            sink = BufferSink(run.buffer, recordings)
            await sink.put(trajectory("g", 0, tokens=2000))
            for index in (1, 2):
                await sink.put(trajectory("g", index))
            assert await run.counts() == {"infra_failed": 1, "finished": 2}
            assert "raise buffer.max_entry_bytes" in await run.ledger.last_failure()
            [told] = recordings.take().told
            assert (told.index, told.what) == (0, "failed")
            assert told.reason.startswith("infra: WireError: oversize")

    asyncio.run(sink())


def test_an_episode_that_the_buffer_does_not_take_is_told_to_the_recordings(redis_url: str) -> None:
    async def sink() -> None:
        async with rig(redis_url) as run:
            await run.issue("g", 2)
            recordings = RecordingQueue()
            sink = BufferSink(run.buffer, recordings)
            for name, index in (("g", 0), ("g", 0), ("nobody", 1)):
                await sink.put(trajectory(name, index))
            assert [(told.group_id, told.what, told.reason) for told in recordings.take().told] == [
                ("g", "late", "another worker had played it before"),
                ("nobody", "late", "its group was over, or weights of an undone history sampled it"),
            ]

    asyncio.run(sink())


def test_a_full_buffer_stores_nothing_and_recovers_when_the_learner_settles(redis_url: str) -> None:
    async def fill() -> None:
        size = len(encode(trajectory("g0", 0)))
        async with rig(redis_url, max_bytes=4 * size + 100, max_entry_bytes=1024) as run:
            for i in range(3):
                await run.issue(f"g{i}")
            answers = [await run.buffer.put(trajectory(f"g{i}", j)) for i in range(3) for j in range(2)]
            assert answers == ["ok"] * 4 + ["full"] * 2
            impatient = TrajectoryBuffer(run.link, run.run_id, run.config.model_copy(update={"put_timeout_s": 0.2}))
            with pytest.raises(BufferUnavailable, match="episode 0 of group g2 waited 0 s to be stored: the buffer is"):
                await impatient.put_with_backpressure(trajectory("g2", 0))
            assert await run.counts() == {"finished": 4, "issued": 2}
            waiting = asyncio.ensure_future(run.buffer.put_with_backpressure(trajectory("g2", 0)))
            await run.take(2)
            await run.buffer.commit(1, {"g0": "trained", "g1": "filtered"})
            assert await run.buffer.put(trajectory("g2", 1)) == "full"  # consumed is not yet safe in a checkpoint
            await run.buffer.settle(1)
            assert await waiting == "ok"
            assert await run.counts() == {"trained": 2, "filtered": 2, "finished": 1, "issued": 1}

    asyncio.run(fill())


def test_the_last_episode_of_a_group_waits_while_too_many_groups_are_ready(redis_url: str) -> None:
    async def fill() -> None:
        async with rig(redis_url, groups_per_update=1, max_staleness=3, max_groups=2) as run:
            for i in range(3):
                await run.issue(f"g{i}")
            answers = [await run.buffer.put(trajectory(f"g{i}", j)) for i in range(3) for j in range(2)]
            assert answers == ["ok"] * 5 + ["full"]
            await run.take(1)
            await run.buffer.commit(1, {"g0": "trained"})
            assert await run.buffer.put(trajectory("g2", 1)) == "ok"

    asyncio.run(fill())


def test_an_episode_over_the_limit_is_refused_at_the_producer(redis_url: str) -> None:
    async def oversize() -> None:
        async with rig(redis_url, max_entry_bytes=1024) as run:
            await run.issue("g")
            with pytest.raises(WireError, match="oversize"):
                await run.buffer.put(trajectory("g", 0, tokens=1000))
            assert await run.counts() == {"issued": 2}

    asyncio.run(oversize())


def test_an_overdue_group_closes_with_its_survivors_or_gets_another_owner(redis_url: str) -> None:
    async def overdue() -> None:
        async with rig(redis_url) as run:
            await run.issue("enough", 4)
            await run.issue("few", 4)
            await run.buffer.put(trajectory("enough", 0))
            await run.buffer.put(trajectory("enough", 3))
            await run.buffer.put(trajectory("few", 1))
            assert await run.buffer.close_overdue() == 0
            await asyncio.sleep(0.02)
            await run.ledger.tick()
            impatient = TrajectoryBuffer(run.link, run.run_id, BufferConfig(group_deadline_s=0.01))
            assert await impatient.close_overdue() == 1
            assert ids(await run.take(1)) == ["enough"]
            assert [(r.group_id, r.missing) for r in await run.ledger.reclaim()] == [("few", (0, 2, 3))]
            assert await run.counts() == {"finished": 3, "infra_failed": 2, "issued": 3}

    asyncio.run(overdue())


def test_depth_tells_ready_consumed_and_open_groups_apart(redis_url: str) -> None:
    async def depth() -> None:
        async with rig(redis_url) as run:
            assert (await run.buffer.depth()).oldest_ready_s == 0.0
            for name in "abc":
                await run.fill(name)
            await run.issue("d")
            await run.take(1)
            await run.buffer.commit(1, {"a": "trained"})
            await asyncio.sleep(0.01)
            await run.ledger.tick()
            found = await run.buffer.depth()
            assert (found.ready_groups, found.applied_groups, found.open_groups) == (2, 1, 1)
            assert found.bytes == sum(len(encode(trajectory(g, i))) for g in "abc" for i in range(2))
            assert 0 < found.oldest_ready_s < 60

    asyncio.run(depth())


def test_two_runs_on_one_server_do_not_meet(redis_url: str) -> None:
    async def both() -> None:
        async with rig(redis_url) as one, rig(redis_url) as other:
            await one.fill("g")
            assert await other.counts() == {}
            assert await other.buffer.put(trajectory("g", 0)) == "late"
            with pytest.raises(BufferRefused, match="run id"):
                other.store.__class__(other.client, "a}b")

    asyncio.run(both())


def test_a_url_comes_from_the_environment_and_an_unset_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert BufferConfig().url == ""
    config = BufferConfig(url_env="MILEPOST_TEST_REDIS")
    with pytest.raises(BufferRefused, match="MILEPOST_TEST_REDIS, which is not set"):
        _ = config.url
    monkeypatch.setenv("MILEPOST_TEST_REDIS", "rediss://:canary@redis:6379")
    assert config.url.startswith("rediss://")
    assert "canary" not in repr(config) + config.model_dump_json()
