"""What tests of pools put in the place of Ray: a host that can be taken away, and engines that answer as told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from milepost.actors.engine import EngineConfig, SamplingConfig
from milepost.cluster.base import restarts
from milepost.cluster.base.restarts import RestartConfig
from milepost.cluster.pools import engine_pool
from milepost.cluster.pools.engine_pool import EnginePool
from milepost.cluster.pools.engine_process import EngineHealth, EngineSpec

SPEC = EngineSpec(
    model=Path("model"),
    version=0,
    config=EngineConfig(),
    sampling=SamplingConfig(),
    stop_token_ids=(),
    seed=0,
    restarts=RestartConfig(),
)


class HostPlace:
    """All parts lie on one host; those in `lost` lost it, and have a place again once they are taken out."""

    def __init__(self) -> None:
        self.lost: set[int] = set()

    def options(self, _index: int) -> Mapping[str, Any]:
        return {}

    def lost_host(self, index: int) -> str | None:
        return "hostB" if index in self.lost else None

    async def regained(self) -> None:
        while self.lost:
            await asyncio.sleep(0)


class Handle:
    """An engine's actor; `dead` makes every call fail."""

    born_dead = False
    starts_at_once = True

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.dead = self.born_dead
        self.unanswered = 0
        self.silent = asyncio.Event()
        self.silent.set()
        self.start = self._method(0) if self.starts_at_once else SimpleNamespace(remote=asyncio.Event().wait)
        self.commit = self._method(1)
        self.health = SimpleNamespace(remote=self._health)
        self.is_asleep = False
        self.sleep = SimpleNamespace(remote=self._sleep)

    async def _sleep(self) -> None:
        if self.dead:
            raise RayActorError
        self.is_asleep = True

    async def _health(self) -> EngineHealth:
        if self.dead:
            raise RayActorError
        await self.silent.wait()
        return EngineHealth(busy_s=2.5, unanswered=self.unanswered, metrics_port=9000)

    def _method(self, answer: object) -> SimpleNamespace:
        async def call(*_: object) -> object:
            if self.dead:
                raise RayActorError
            return answer

        return SimpleNamespace(remote=call)


def spawned_handles(monkeypatch: pytest.MonkeyPatch) -> list[Handle]:
    """What every `EnginePool` spawns from here on, instead of actors."""
    made: list[Handle] = []

    def launch(_: EnginePool, spec: EngineSpec, _index: int) -> Handle:
        made.append(Handle(spec))
        return made[-1]

    monkeypatch.setattr(EnginePool, "_launch", launch)
    monkeypatch.setattr(engine_pool.ray, "kill", lambda _: None)
    monkeypatch.setattr(restarts, "_FIRST_PAUSE_S", 0.0)
    return made


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)
