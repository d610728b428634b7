"""The histories of tasks on a real Redis: fading, counting once, and bytes that are not theirs."""

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from milepost.cluster.replay import history as history_module
from milepost.cluster.replay.client import connect
from milepost.cluster.replay.history import SCHEMA_VERSION, TaskHistory
from milepost.cluster.replay.wire import WireError
from milepost.envs.types import Task
from milepost.learner.credit.assignment import PastTransition
from tests.cluster.replay.buffer_rig import CuttingProxy, Rig, rig, task

STEP = PastTransition("A", "x", "B", False, 2.0)
WON = PastTransition("B", "p", None, True, 1.0)
LOST = PastTransition("B", "p", None, False, 1.0)


def history(run: Rig, decay: float = 0.5) -> TaskHistory:
    return TaskHistory(run.link, run.run_id, decay=decay)


def counted(past: Sequence[PastTransition], times: float) -> tuple[PastTransition, ...]:
    return tuple(PastTransition(p.anchor, p.action, p.target, p.won, p.count * times) for p in past)


async def the_key(run: Rig) -> bytes:
    (key,) = await run.client.keys(f"mp:{{{run.run_id}}}:history:task:*")
    return key


def test_what_a_group_saw_comes_back_for_its_task_and_for_no_other(redis_url: str) -> None:
    async def check() -> None:
        async with rig(redis_url) as run:
            past = history(run)
            assert await past.add(task(1), "g1", (STEP, LOST, WON), version=3)
            assert await past.fetch([task(2), task(1)], version=3) == [(), (STEP, LOST, WON)]
            async with rig(redis_url) as other:
                assert await history(other).fetch([task(1)], version=3) == [()]

    asyncio.run(check())


def test_equal_tasks_share_a_history_whatever_the_order_of_their_options(redis_url: str) -> None:
    def written(**options: int) -> Task:
        return Task(env="e:E", seed=1, split="train", options=options)

    async def check() -> None:
        async with rig(redis_url) as run:
            await history(run).add(written(a=1, b=2), "g", (STEP, WON), version=0)
            same, other = await history(run).fetch([written(b=2, a=1), written(a=1, b=3)], version=0)
            assert (same, other) == ((STEP, WON), ())

    asyncio.run(check())


def test_counts_fade_with_every_version_between(redis_url: str) -> None:
    async def check() -> None:
        async with rig(redis_url) as run:
            past = history(run)
            await past.add(task(), "g1", (STEP, WON), version=1)
            assert await past.fetch([task()], version=3) == [counted((STEP, WON), 0.25)]
            # The sum at version 2 is 1 + 2 and 0.5; at version 4 a quarter of that.
            await past.add(task(), "g2", (STEP,), version=2)
            (found,) = await past.fetch([task()], version=4)
            assert [p.count for p in found] == [0.75, 0.125]
            assert await past.fetch([task()], version=40) == [()]

    asyncio.run(check())


def test_a_group_that_is_delivered_again_counts_once(redis_url: str) -> None:
    async def check() -> None:
        async with rig(redis_url) as run:
            past = history(run)
            assert await past.add(task(), "g1", (STEP, WON), version=1)
            assert not await past.add(task(), "g1", (STEP, WON), version=2)
            assert not await history(run).add(task(), "g1", (STEP, WON), version=1)
            assert await past.fetch([task()], version=1) == [(STEP, WON)]

    asyncio.run(check())


def test_a_group_whose_reply_was_lost_counts_once(redis_url: str) -> None:
    async def check() -> None:
        async with rig(redis_url) as run, CuttingProxy(redis_url) as proxy:
            client = connect(proxy.url)
            past = TaskHistory(client, run.run_id, decay=0.5)
            proxy.cut_replies_to = b"EVAL"
            await past.add(task(), "g1", (STEP, WON), version=1)
            assert proxy.cuts == 1
            assert await history(run).fetch([task()], version=1) == [(STEP, WON)]
            await client.aclose()

    asyncio.run(check())


def test_writers_at_the_same_time_lose_nothing(redis_url: str) -> None:
    async def check() -> None:
        async with rig(redis_url) as run:
            writers = [history(run) for _ in range(8)]
            adds = [past.add(task(), f"g{i // 2}", (STEP, WON), version=1) for i, past in enumerate(writers)]
            assert sorted(await asyncio.gather(*adds)) == [False] * 4 + [True] * 4
            assert await history(run).fetch([task()], version=1) == [counted((STEP, WON), 4)]

    asyncio.run(check())


def test_a_task_keeps_its_most_frequent_transitions(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "MAX_TRANSITIONS", 2)

    async def check() -> None:
        async with rig(redis_url) as run:
            past = history(run)
            await past.add(task(), "g1", (STEP, LOST, WON), version=1)
            await past.add(task(), "g2", (WON,), version=1)
            assert await past.fetch([task()], version=1) == [(STEP, LOST)]  # equal to WON then, and first by name

    asyncio.run(check())


def test_an_older_version_after_a_rollback_fades_nothing(redis_url: str) -> None:
    async def check() -> None:
        async with rig(redis_url) as run:
            past = history(run)
            await past.add(task(), "g1", (STEP,), version=9)
            assert await past.fetch([task()], version=4) == [(STEP,)]
            await past.add(task(), "g2", (STEP,), version=5)
            assert await past.fetch([task()], version=9) == [counted((STEP,), 2)]
            assert await past.fetch([task()], version=10) == [(STEP,)]

    asyncio.run(check())


def test_group_ids_are_kept_until_a_checkpoint_holds_their_update(redis_url: str) -> None:
    async def check() -> None:
        async with rig(redis_url) as run:
            past = history(run)
            for version in (1, 2, 3):
                await past.add(task(), f"g{version}", (STEP,), version=version)
            await past.settle(2)
            assert await run.client.zrange(f"mp:{{{run.run_id}}}:history:counted", 0, -1) == [b"g3"]
            assert not await past.add(task(), "g3", (STEP,), version=3)

    asyncio.run(check())


def test_ledger_and_buffer_do_not_notice(redis_url: str) -> None:
    async def everything_else(run: Rig) -> dict[bytes, bytes]:
        keys = [key for key in await run.client.keys(f"mp:{{{run.run_id}}}:*") if b":history:" not in key]
        return {key: await run.client.dump(key) for key in keys}

    async def check() -> None:
        async with rig(redis_url) as run:
            await run.fill("g1")
            before = await everything_else(run)
            await history(run).add(task(), "g1", (STEP, WON), version=1)
            await history(run).settle(1)
            assert before
            assert await everything_else(run) == before
            assert await run.counts() == {"finished": 2}

    asyncio.run(check())


def _bytes(transitions: list[object], states: tuple[str, ...] = ("A", "B"), **more: object) -> bytes:
    body = {"version": 1, "states": states, "transitions": transitions, **more}
    return b"mpH" + bytes([SCHEMA_VERSION]) + msgspec.msgpack.encode(body)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"pickle", "foreign"),
        (b"mpH", "foreign"),
        (b"mpH" + bytes([SCHEMA_VERSION + 1]), "schema"),
        (_bytes([(0, "x", 1, False, 1.0)])[:-1], "malformed"),
        (_bytes([(0, "x", 2, False, 1.0)]), "malformed"),
        (_bytes([(-1, "x", 1, False, 1.0)]), "malformed"),
        (_bytes([(0, "x", 1, False, float("nan"))]), "malformed"),
        (_bytes([(0, "x", 1, False, 0.0)]), "malformed"),
        (_bytes([(0, "x", 1, False)]), "malformed"),
        (_bytes([], extra=1), "malformed"),
        (_bytes([]) + b" " * 8 * 1024**2, "oversize"),
    ],
)
def test_bytes_that_are_no_history_are_refused_with_the_task(redis_url: str, data: bytes, reason: str) -> None:
    async def check() -> None:
        async with rig(redis_url) as run:
            past = history(run)
            await past.add(task(5), "g1", (STEP,), version=1)
            await run.client.hset(await the_key(run), "counts", data)
            for attempt in (past.fetch([task(5)], version=1), past.add(task(5), "g2", (STEP,), version=1)):
                with pytest.raises(WireError, match=r"history of task tests\.envs:Lake with seed 5") as caught:
                    await attempt
                assert str(caught.value).startswith(f"{reason}: ")

    asyncio.run(check())


def test_the_bytes_the_refusals_start_from_are_a_history(redis_url: str) -> None:
    async def check() -> None:
        async with rig(redis_url) as run:
            past = history(run)
            await past.add(task(), "g1", (WON,), version=1)
            await run.client.hset(await the_key(run), "counts", _bytes([(0, "x", 1, False, 2.0)]))
            assert await past.fetch([task()], version=1) == [(STEP,)]

    asyncio.run(check())


def test_state_keys_that_outgrow_the_limit_are_refused_before_they_are_stored(redis_url: str) -> None:
    async def check() -> None:
        async with rig(redis_url) as run:
            past = history(run)
            huge = PastTransition("A" * 9 * 1024**2, "x", None, True, 1.0)
            with pytest.raises(WireError, match="shorten the state keys of the environment"):
                await past.add(task(), "g1", (huge,), version=1)
            assert await past.fetch([task()], version=1) == [()]
            assert await past.add(task(), "g1", (STEP,), version=1)

    asyncio.run(check())


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, float("nan")])
def test_a_history_that_is_off_or_never_fades_is_refused(redis_url: str, decay: float) -> None:
    async def check() -> None:
        async with rig(redis_url) as run:
            with pytest.raises(ValueError, match="set history_decay between 0 and 1"):
                history(run, decay)

    asyncio.run(check())
