"""A worker whose interpreter is held is killed, and what its environment started with it; another plays on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psutil
import pytest
import ray

from milepost.actors.worker import ActorConfig
from milepost.cluster.hosts.ray_start import start_ray
from milepost.cluster.pools.engines import Rotation
from milepost.cluster.pools.workers import WorkerPool
from milepost.envs.scenarios import ScenarioConfig
from milepost.envs.types import Failure, Trajectory
from tests.actors.episode_rig import task
from tests.cluster.pools.hosts.pool_rig import HostPlace
from tests.cluster.pools.worker_rig import worker_spec

LIMIT_S = 2.0


class Ledger:
    async def release_owner(self, _: str) -> None:
        """There are no leases."""


@pytest.mark.services
@pytest.mark.timeout(400)
def test_a_held_interpreter_and_its_process_group_end_soon_after_the_limit_of_a_call(
    tiny_policy: Path, tmp_path: Path
) -> None:
    place = tmp_path / "group"
    path = "tests.cluster.pools.holding_env:HoldsTheInterpreter"
    spec = worker_spec(
        model=tiny_policy,
        env=[ScenarioConfig(path=path, options={"place": str(place)})],
        actors=ActorConfig(env_timeout_s=LIMIT_S),
        group_size=1,
    )

    async def go() -> tuple[list[Trajectory | Failure], float]:
        pool = WorkerPool(spec, Ledger(), Rotation([], is_growing=False), None, HostPlace())  # type: ignore[arg-type]
        try:
            playing = asyncio.ensure_future(pool.play([(0, task(path, place=str(place)))], 120))
            while not place.exists():
                await asyncio.sleep(0.05)
            started, group = time.monotonic(), psutil.Process(int(place.read_text()))
            while group.is_running():
                await asyncio.sleep(0.05)
            ended_s = time.monotonic() - started
            return await playing, ended_s
        finally:
            await pool.stop()

    start_ray("local")
    try:
        results, ended_s = asyncio.run(go())
    finally:
        ray.shutdown()
    assert [type(result) for result in results] == [Failure]
    assert "plays it again" in results[0].message  # type: ignore[union-attr]
    assert (
        ended_s < LIMIT_S + 20
    )  # 5 s where nothing else computes; a minute and more if only the start-up's limit held
