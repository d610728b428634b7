"""Engines that leave their GPUs to the learner's ranks, on handles that answer as they are told."""

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import milepost.actors.vllm
from milepost.actors.engine import EngineConfig
from milepost.cluster.pools import engine_process
from milepost.cluster.pools.engine_pool import EnginePool
from milepost.cluster.pools.engine_process import EngineActor
from tests.cluster.pools.hosts.pool_rig import SPEC, Handle, HostPlace, settled, spawned_handles
from tests.cluster.pools.test_engine_pool import Delivered

TWO = replace(SPEC, config=EngineConfig(num_engines=2), sleeps=True)


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> list[Handle]:
    return spawned_handles(monkeypatch)


async def begun(spec: Any = TWO) -> EnginePool:
    pool = EnginePool(spec, HostPlace())
    await pool.start()
    return pool


def test_ranks_may_compute_from_when_every_engine_sleeps_to_the_next_publication(spawned: list[Handle]) -> None:
    async def train_once() -> None:
        pool, falls = await begun(), asyncio.Event()
        spawned[1].sleep = SimpleNamespace(remote=falls.wait)
        sleeping = asyncio.create_task(pool.sleep())
        await settled()
        assert not pool.asleep.is_set()
        falls.set()
        await sleeping
        assert pool.asleep.is_set()
        await pool.publish(Delivered())  # type: ignore[arg-type]
        assert not pool.asleep.is_set()
        assert pool.served == {0: 1, 1: 1}

    asyncio.run(train_once())


def test_an_engine_that_dies_asleep_is_started_again_when_the_ranks_have_left_its_gpu(spawned: list[Handle]) -> None:
    async def lose_one() -> None:
        pool = await begun()
        await pool.sleep()
        spawned[0].dead = True
        await pool.probe()
        await settled()
        assert len(spawned) == 2, "the rank is using what it would start in"
        await pool.publish(Delivered())  # type: ignore[arg-type]
        await settled()
        assert (len(spawned), pool.served) == (3, {0: 1, 1: 1})

    asyncio.run(lose_one())


def test_an_engine_that_stays_awake_is_replaced_after_the_publication(spawned: list[Handle]) -> None:
    async def keep_awake() -> None:
        pool = await begun()
        spawned[1].dead = True
        await pool.sleep()
        assert pool.asleep.is_set(), "it was killed, which frees its memory, too"
        assert pool.handles == [spawned[0]]
        await pool.publish(Delivered())  # type: ignore[arg-type]
        await settled()
        assert (len(spawned), pool.served) == (3, {0: 1, 1: 1})

    asyncio.run(keep_awake())


def test_an_engine_that_is_just_starting_is_waited_for_and_then_sleeps_too(spawned: list[Handle]) -> None:
    async def lose_one_before() -> None:
        pool = await begun()
        spawned[0].dead = True
        await pool.probe()
        await pool.sleep()
        assert [handle.is_asleep for handle in spawned] == [False, True, True]

    asyncio.run(lose_one_before())


def test_engines_that_share_no_gpu_never_sleep_and_ranks_never_wait(spawned: list[Handle]) -> None:
    async def train_once() -> None:
        pool = await begun(SPEC)
        assert pool.asleep.is_set()
        await pool.sleep()
        assert not spawned[0].is_asleep
        await pool.publish(Delivered())  # type: ignore[arg-type]
        assert pool.asleep.is_set()

    asyncio.run(train_once())


@pytest.mark.parametrize(
    ("sleeps", "told", "given"),
    [
        (True, {}, {"enable_sleep_mode": True}),
        (True, {"block_size": 16}, {"enable_sleep_mode": True, "block_size": 16}),
        (False, {"block_size": 16}, {"block_size": 16}),
    ],
)
def test_vllm_is_started_in_sleep_mode_where_its_engine_is_to_sleep(
    sleeps: bool, told: dict[str, Any], given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[EngineConfig] = []
    monkeypatch.setattr(milepost.actors.vllm, "VLLMEngine", lambda _m, config, _s, **_: started.append(config))
    monkeypatch.setattr(engine_process, "lacks_plug_in", lambda: None)
    monkeypatch.setattr(engine_process, "serve_metrics", lambda: 1)

    async def start() -> None:
        EngineActor(replace(SPEC, model=Path("model"), config=EngineConfig(vllm=told), sleeps=sleeps))

    asyncio.run(start())
    assert started[0].vllm == given
