"""The pool's bookkeeping of engines that die at bad moments, on handles that answer as they are told."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from milepost.actors.engine import EngineConfig
from milepost.cluster.base.exits import DependencyLost
from milepost.cluster.base.restarts import RestartConfig
from milepost.cluster.pools import engine_pool, engine_slot
from milepost.cluster.pools.engine_pool import EnginePool
from milepost.cluster.pools.engines import Rotation
from tests.cluster.pools.hosts.pool_rig import SPEC, Handle, HostPlace, settled, spawned_handles


class Delivered:
    """Weights of version 1 that every engine takes, until `spoil` is called."""

    version, repeatable = 1, True

    def __init__(self) -> None:
        self.spoil: Callable[[Handle], None] = lambda _: None
        self.digests: Callable[[Handle], dict[str, str]] = lambda _: {"weight": "digest"}

    async def deliver(self, engines: list[Handle], _timeout_s: float, _: dict[str, float]) -> list[dict[str, str]]:
        for engine in engines:
            self.spoil(engine)
        return [self.digests(engine) for engine in engines]


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> list[Handle]:
    return spawned_handles(monkeypatch)


def test_a_replacement_that_dies_before_it_was_looked_at_is_replaced_too(spawned: list[Handle]) -> None:
    async def lose_two() -> EnginePool:
        pool = EnginePool(SPEC, HostPlace())
        await pool.start()
        for expected in (2, 3):
            spawned[-1].dead = True
            assert await pool.probe() == []
            await settled()
            assert len(spawned) == expected
        assert await pool.probe() == [2.5]
        return pool

    pool = asyncio.run(lose_two())
    assert (pool.handles, pool.restarts) == ([spawned[2]], 2)


def test_a_replacement_that_dies_at_its_first_commit_is_no_engine_in_rotation_and_is_replaced_too(
    spawned: list[Handle],
) -> None:
    def die(handle: Any) -> None:
        handle.dead = True

    async def lose_at_commit() -> None:
        pool, weights = EnginePool(SPEC, HostPlace()), Delivered()
        await pool.start()
        assert (await pool.publish(weights)).keys() == {"commit"}, "the rest is the delivery's"
        await pool.probe()
        assert (pool.served, pool.metrics_ports) == ({0: 1}, {0: 9000})
        weights.spoil = die
        spawned[0].dead = True
        await pool.probe()
        await settled()
        assert pool.handles == []
        assert (pool.served, pool.metrics_ports) == ({0: None}, {})
        weights.spoil = lambda _: None
        await pool.probe()
        await settled()
        assert (pool.handles, pool.restarts) == ([spawned[2]], 2)

    asyncio.run(lose_at_commit())


def test_engines_whose_weights_differ_do_not_serve_and_their_replacement_is_compared_with_what_is_published(
    spawned: list[Handle],
) -> None:
    async def publish() -> None:
        pool, weights = EnginePool(replace(SPEC, config=EngineConfig(num_engines=2)), HostPlace()), Delivered()
        await pool.start()
        weights.digests = lambda engine: {"weight": "digest" if engine is spawned[0] else "another"}
        await pool.publish(weights)
        await settled()
        assert pool.served == {0: 1, 1: None}
        assert len(spawned) == 3
        weights.digests = lambda _: {"weight": "digest"}
        await pool.probe()
        await settled()
        assert (pool.served, len(spawned)) == ({0: 1, 1: 1}, 4)

    asyncio.run(publish())


@pytest.mark.usefixtures("spawned")
def test_a_broadcast_that_no_engine_took_ends_the_run_since_replacements_would_wait_for_the_next_one() -> None:
    class Broken(Delivered):
        repeatable = False

        async def deliver(self, engines: list[Handle], *_: object) -> list[dict[str, str] | None]:
            return [None for _ in engines]

    async def publish() -> None:
        pool = EnginePool(replace(SPEC, config=EngineConfig(num_engines=2)), HostPlace())
        await pool.start()
        with pytest.raises(DependencyLost, match="no engine took the weights of version 1"):
            await pool.publish(Broken())

    asyncio.run(publish())


def test_engines_that_cannot_be_replaced_are_missed_until_too_few_serve(spawned: list[Handle]) -> None:
    async def lose_all() -> None:
        limits = RestartConfig(min_engines=2, max_per_engine=0)
        pool = EnginePool(replace(SPEC, config=EngineConfig(num_engines=3), restarts=limits), HostPlace())
        await pool.start()
        spawned[0].dead = True
        assert len(await pool.probe()) == 2
        assert len(await pool.probe()) == 2
        assert (pool.handles, pool.restarts, len(spawned)) == (spawned[1:], 0, 3)
        spawned[2].dead = True
        with pytest.raises(
            DependencyLost, match=r"engine 2 died: .*; restarts\.max_per_engine = 0 in 3600 s is used up, and 1 engines"
        ):
            await pool.probe()

    asyncio.run(lose_all())


def test_a_replacement_that_does_not_come_up_is_tried_again_while_another_engine_serves(
    spawned: list[Handle], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail_twice() -> None:
        pool = EnginePool(replace(SPEC, config=EngineConfig(num_engines=2)), HostPlace())
        await pool.start()
        spawned[0].dead = True
        monkeypatch.setattr(Handle, "born_dead", True)
        for attempts in (1, 2, 3):
            assert len(await pool.probe()) == 1
            await settled()
            assert pool.restarts == attempts
            monkeypatch.setattr(Handle, "born_dead", attempts < 2)
        assert pool.handles == [spawned[4], spawned[1]]

    asyncio.run(fail_twice())


def test_an_engine_that_had_no_restart_left_is_started_again_when_the_window_has_passed(spawned: list[Handle]) -> None:
    async def wait_for_the_window() -> None:
        limits = RestartConfig(window_s=0.05, max_per_engine=1)
        pool = EnginePool(replace(SPEC, config=EngineConfig(num_engines=2), restarts=limits), HostPlace())
        await pool.start()
        for _ in range(2):
            next(handle for handle in spawned if handle in pool.handles and handle is not spawned[1]).dead = True
            await pool.probe()
            await settled()
        assert pool.handles == [spawned[1]]
        await asyncio.sleep(0.06)
        await pool.probe()
        await settled()
        assert pool.handles == [spawned[3], spawned[1]]

    asyncio.run(wait_for_the_window())


def test_every_engine_that_is_started_draws_from_a_seed_of_its_own_and_a_run_repeats_them(
    spawned: list[Handle],
) -> None:
    async def seeds_of(version: int) -> list[int]:
        spawned.clear()
        pool = EnginePool(replace(SPEC, version=version, config=EngineConfig(num_engines=2)), HostPlace())
        await pool.start()
        spawned[0].dead = True
        await pool.probe()
        await settled()
        return [handle.spec.seed for handle in spawned]

    first, again, resumed = (asyncio.run(seeds_of(version)) for version in (0, 0, 5))
    assert first == again
    assert len(first) == 3, "two engines and one replacement"
    assert len({*first, *resumed}) == 6
    assert all(0 <= seed < 2**31 for seed in first + resumed)


def test_an_engine_whose_core_stopped_is_replaced_while_the_other_one_goes_on(
    spawned: list[Handle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_slot, "_PROBE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(engine_pool, "_PROBE_WAIT_S", 0.02)

    async def stop_a_core() -> None:
        config = EngineConfig(num_engines=2, request_timeout_s=0.1)
        pool = EnginePool(replace(SPEC, config=config), HostPlace())
        await pool.start()
        assert await pool.probe() == [2.5, 2.5]
        spawned[0].silent.clear()
        assert len(await pool.probe()) == 2, "a slow answer is none yet, and nobody waits for it"
        assert pool.rotation == Rotation(spawned[:2], is_growing=False)
        await asyncio.sleep(0.05)
        assert len(await pool.probe()) == 1
        assert pool.rotation == Rotation([spawned[1]], is_growing=True)
        await settled()
        assert len(await pool.probe()) == 2
        assert pool.rotation == Rotation([spawned[2], spawned[1]], is_growing=False)

    asyncio.run(stop_a_core())


def test_an_engine_that_answers_probes_and_no_request_is_replaced(spawned: list[Handle]) -> None:
    async def wedge() -> None:
        pool = EnginePool(SPEC, HostPlace())
        await pool.start()
        spawned[0].unanswered = 7
        assert len(await pool.probe()) == 1
        spawned[0].unanswered = 8
        assert await pool.probe() == []
        await settled()
        assert (pool.handles, pool.restarts) == ([spawned[1]], 1)

    asyncio.run(wedge())
