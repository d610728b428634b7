"""The pool's bookkeeping of engines that die at bad moments, on handles that answer as they are told."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from milepost.actors.engine import EngineConfig, SamplingConfig
from milepost.cluster.base.exits import DependencyLost
from milepost.cluster.pools import engine_pool
from milepost.cluster.pools.engine_pool import EnginePool
from milepost.cluster.pools.engines import EngineSpec

SPEC = EngineSpec(
    model=Path("model"), version=0, config=EngineConfig(), sampling=SamplingConfig(), stop_token_ids=(), seed=0
)


class Handle:
    """An engine's actor; `dead` makes every call fail."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.dead = False
        self.start, self.busy_s, self.commit = (self._method(answer) for answer in (0, 2.5, 1))

    def _method(self, answer: object) -> SimpleNamespace:
        async def call(*_: object) -> object:
            if self.dead:
                raise RayActorError
            return answer

        return SimpleNamespace(remote=call)


class Delivered:
    """Weights of version 1 that every engine takes, until `spoil` is called."""

    version, repeatable = 1, True

    def __init__(self) -> None:
        self.spoil: Callable[[Handle], None] = lambda _: None

    async def deliver(self, engines: list[Handle], _timeout_s: float) -> list[dict[str, str]]:
        for engine in engines:
            self.spoil(engine)
        return [{"weight": "digest"} for _ in engines]


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> list[Handle]:
    made: list[Handle] = []

    def launch(_: EnginePool, spec: EngineSpec) -> Handle:
        made.append(Handle(spec))
        return made[-1]

    monkeypatch.setattr(EnginePool, "_launch", launch)
    monkeypatch.setattr(engine_pool.ray, "kill", lambda _: None)
    return made


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_replacement_that_dies_before_it_was_looked_at_is_replaced_too(spawned: list[Handle]) -> None:
    async def lose_two() -> EnginePool:
        pool = EnginePool(SPEC)
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


def test_a_replacement_that_dies_at_its_first_commit_does_not_pass_for_one_in_rotation(spawned: list[Handle]) -> None:
    def die(handle: Any) -> None:
        handle.dead = True

    async def lose_at_commit() -> None:
        pool, weights = EnginePool(SPEC), Delivered()
        await pool.start()
        await pool.publish(weights)
        weights.spoil = die
        spawned[0].dead = True
        await pool.probe()
        await settled()
        assert pool.handles == []
        with pytest.raises(DependencyLost, match="was replaced but does not serve version 1"):
            await pool.probe()

    asyncio.run(lose_at_commit())


def test_every_engine_that_is_started_draws_from_a_seed_of_its_own_and_a_run_repeats_them(
    spawned: list[Handle],
) -> None:
    async def seeds_of(version: int) -> list[int]:
        spawned.clear()
        pool = EnginePool(replace(SPEC, version=version, config=EngineConfig(num_engines=2)))
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
