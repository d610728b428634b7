import asyncio
import threading

import pytest

from milepost.cluster.replay import ready
from milepost.cluster.replay.client import BufferRefused
from milepost.cluster.replay.ready import NothingReady
from milepost.cluster.replay.wire import EncodedGroup, decode_group, encode
from milepost.envs.types import Group
from tests.cluster.replay.buffer_rig import ids, rig, trajectory


def test_poison_becomes_a_dead_letter_with_its_reason_and_the_rest_is_delivered(redis_url: str) -> None:
    poison = {
        0: b"\x80\x04pickle",
        1: b"mp\x09T" + encode(trajectory("g1", 0))[4:],
        2: encode(trajectory("g2", 0))[:-3],
        3: b"mp\x06T" + b"\x91" * 2000,
        4: b"x" * 5000,
        5: encode(trajectory("another", 0)),
    }

    async def take() -> None:
        async with rig(redis_url, max_entry_bytes=4096) as run:
            for i in range(30):
                await run.fill(f"g{i}")
            for i, data in poison.items():
                await run.client.hset(run.store.payload(f"g{i}"), 0, data)
            taken = await run.take(24)
            assert ids(taken) == [f"g{i}" for i in range(6, 30)]
            dead = [fields for _, fields in await run.client.xrange(run.store.dead)]
            assert [d[b"group_id"].decode() for d in dead] == [f"g{i}" for i in poison]
            told = [d[b"reason"].decode() for d in dead]
            for reason, expected in zip(
                told, ("foreign", "schema", "malformed", "malformed", "oversize"), strict=False
            ):
                assert reason.startswith(expected)
            assert "do not belong to group g5" in told[5]
            assert [name for name, _ in taken.undecodable] == [f"g{i}" for i in poison]
            assert [reason[:500] for _, reason in taken.undecodable] == told
            assert max(map(len, told)) <= 500
            counts = (await run.ledger.balance()).counts
            assert (counts["dead_letter"], counts["finished"]) == (12, 48)

    asyncio.run(take())


def test_a_group_is_handed_out_with_the_bytes_that_redis_held_and_decoded_off_the_loop(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding: list[threading.Thread] = []

    def decode(encoded: EncodedGroup) -> Group:
        decoding.append(threading.current_thread())
        return decode_group(encoded)

    async def take() -> None:
        async with rig(redis_url) as run:
            await run.fill("g", 3)
            (leased,) = (await run.take(1)).groups
            held = await run.client.hgetall(run.store.payload("g"))
            assert leased.encoded.trajectories == tuple(held[b"%d" % index] for index in range(3))
            assert decode_group(leased.encoded) == leased.group
            assert decoding
            assert threading.current_thread() not in decoding

    monkeypatch.setattr(ready, "decode_group", decode)
    asyncio.run(take())


def test_groups_too_old_or_from_the_future_become_stale(redis_url: str) -> None:
    async def take() -> None:
        async with rig(redis_url) as run:
            await run.ledger.set_versions(version=5)
            await run.fill("old", oldest=2, newest=5)
            await run.fill("edge", oldest=3, newest=5)
            await run.fill("fresh", oldest=5)
            taken = await run.take(2, version=5, max_staleness=2)
            assert ids(taken) == ["edge", "fresh"]
            assert len(taken.stale) == 1
            assert await run.counts() == {"stale": 2, "finished": 4}
            await run.issue("future")
            assert await run.buffer.put(trajectory("future", 0, oldest=5, newest=6)) == "late"
            assert await run.counts() == {"stale": 3, "finished": 4, "issued": 1}

    asyncio.run(take())


def test_groups_held_for_a_later_call_are_checked_again(redis_url: str) -> None:
    async def take() -> None:
        async with rig(redis_url) as run:
            await run.fill("a")
            with pytest.raises(NothingReady):
                await run.take(2, version=0, max_staleness=0, timeout_s=0.05)
            await run.ledger.set_versions(version=1)
            await run.fill("b", oldest=1)
            await run.fill("c", oldest=1)
            taken = await run.take(2, version=1, max_staleness=0)
            assert (ids(taken), len(taken.stale)) == (["b", "c"], 1)

    asyncio.run(take())


def test_a_wait_that_ends_says_who_is_missing_and_loses_nothing(redis_url: str) -> None:
    async def take() -> None:
        async with rig(redis_url) as run:
            await run.fill("ready")
            await run.issue("slow", 4, owner="worker-7")
            await run.buffer.put(trajectory("slow", 0))
            with pytest.raises(NothingReady) as missing:
                await run.take(2, timeout_s=0.1)
            assert "waited 0 s for 2 ready groups, have 1, 1 in play" in str(missing.value)
            assert "slow with worker-7 for 0 s, 1/4 done" in str(missing.value)
            for index in (1, 2, 3):
                await run.buffer.put(trajectory("slow", index))
            assert ids(await run.take(2)) == ["ready", "slow"]

    asyncio.run(take())


def test_take_waits_for_what_is_on_its_way(redis_url: str) -> None:
    async def take() -> None:
        async with rig(redis_url) as run:
            waiting = asyncio.ensure_future(run.take(2))
            for group_id in ("a", "b"):
                await asyncio.sleep(0.05)
                await run.fill(group_id)
            assert ids(await waiting) == ["a", "b"]

    asyncio.run(take())


def test_what_a_learner_took_and_did_not_commit_comes_to_the_next_one_first(redis_url: str) -> None:
    async def restart() -> None:
        async with rig(redis_url) as run:
            for name in "abcd":
                await run.fill(name)
            assert ids(await run.take(1)) == ["a"]
            await run.buffer.commit(1, {"a": "trained"})
            assert ids(await run.take(2, version=1)) == ["b", "c"]
            run.buffer.redeliver()  # the learner died, this process did not
            assert ids(await run.take(2, version=1)) == ["b", "c"]
            again = run.restarted_learner()
            taken = await again.take(3, version=1, max_staleness=8, timeout_s=5)
            assert ids(taken) == ["b", "c", "d"]  # a was consumed
            with pytest.raises(NothingReady):
                await again.take(1, version=1, max_staleness=8, timeout_s=0.05)

    asyncio.run(restart())


def test_a_rollback_makes_later_commits_pending_again_and_earlier_ones_stay(redis_url: str) -> None:
    async def restart() -> None:
        async with rig(redis_url) as run:
            for name in "abc":
                await run.fill(name)
            for version, name in enumerate("abc", start=1):
                assert ids(await run.take(1, version=version - 1)) == [name]
                await run.buffer.commit(version, {name: "trained" if name != "b" else "filtered"})
            assert await run.buffer.settle(1) == 1
            assert await run.counts() == {"trained": 2, "applied": 4}
            learner = run.restarted_learner()
            assert await learner.rollback(1) == 2
            assert await learner.rollback(1) == 0
            assert await run.ledger.version() == 1
            assert await run.counts() == {"trained": 2, "finished": 4}
            taken = await learner.take(2, version=1, max_staleness=8, timeout_s=5)
            assert ids(taken) == ["b", "c"]
            await learner.commit(2, {"b": "trained", "c": "trained"})
            assert await learner.settle(2) == 2
            assert await run.counts() == {"trained": 6}

    asyncio.run(restart())


def test_after_a_rollback_what_the_lost_weights_sampled_is_stale(redis_url: str) -> None:
    async def restart() -> None:
        async with rig(redis_url) as run:
            await run.ledger.set_versions(version=3)
            await run.fill("lost", oldest=2, newest=3)
            await run.fill("kept", oldest=2)
            await run.issue("playing")
            await run.issue("playing too")
            learner = run.restarted_learner()
            await learner.rollback(2)
            assert await run.counts() == {"stale": 2, "finished": 2, "issued": 4}
            await learner.take(1, version=2, max_staleness=8, timeout_s=5)
            await learner.commit(3, {"kept": "trained"})  # another version 3 than the one that was lost
            assert await run.buffer.put(trajectory("playing", 0, oldest=2, newest=3)) == "late"
            assert await run.buffer.put(trajectory("playing too", 0, oldest=2)) == "ok"
            await run.fill("new", oldest=3)
            assert await run.counts() == {"stale": 3, "applied": 2, "issued": 2, "finished": 3}

    asyncio.run(restart())


def test_a_commit_moves_all_groups_or_none_and_can_be_repeated(redis_url: str) -> None:
    async def commit() -> None:
        async with rig(redis_url) as run:
            await run.fill("a")
            await run.fill("b")
            await run.take(2)
            with pytest.raises(
                BufferRefused, match=r"commit of version 1: 1 groups are not ready any more \(strange\)"
            ):
                await run.buffer.commit(1, {"a": "trained", "strange": "trained"})
            assert await run.counts() == {"finished": 4}
            for _ in range(2):
                await run.buffer.commit(1, {"a": "trained", "b": "filtered"})
            assert await run.counts() == {"applied": 4}
            with pytest.raises(BufferRefused, match="not ready any more"):
                await run.buffer.commit(1, {"a": "filtered"})
            assert [await run.buffer.settle(1), await run.buffer.settle(1)] == [2, 0]
            assert await run.counts() == {"trained": 2, "filtered": 2}

    asyncio.run(commit())


def test_a_learner_that_was_overtaken_cannot_commit(redis_url: str) -> None:
    async def commit() -> None:
        async with rig(redis_url) as run:
            await run.fill("a")
            slow, quick = run.restarted_learner(), run.restarted_learner()
            assert ids(await slow.take(1, version=0, max_staleness=8, timeout_s=5)) == ["a"]
            assert ids(await quick.take(1, version=0, max_staleness=8, timeout_s=5)) == ["a"]
            await quick.commit(1, {"a": "trained"})
            await quick.settle(1)
            with pytest.raises(BufferRefused, match="not ready any more"):
                await slow.commit(1, {"a": "trained"})
            await quick.commit(2, {})
            with pytest.raises(BufferRefused, match="commit of version 1: the ledger is at 2"):
                await slow.commit(1, {"a": "trained"})
            assert await run.counts() == {"trained": 2}

    asyncio.run(commit())
