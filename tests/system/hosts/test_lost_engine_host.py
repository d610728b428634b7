"""Two real engines on two raylets of one machine, one of which is killed: the other engine serves on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from milepost.actors.engine import EngineConfig, SamplingConfig
from milepost.cluster.base.restarts import RestartConfig
from milepost.cluster.placement.plan import Part, Placement
from milepost.cluster.pools.engine_pool import EnginePool
from milepost.cluster.pools.engines import EngineSpec, RoutedEngines
from milepost.cluster.pools.places import Places
from milepost.envs.dialogue import Dialogue

pytestmark = [pytest.mark.services, pytest.mark.sweep]
DEADLINE_S = 300.0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            made.add_node(num_cpus=1)
        ray.init(address=made.address, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.mark.timeout(900)
def test_an_engine_whose_host_is_killed_leaves_the_other_one_serving_and_comes_back_with_a_host(
    cluster: Cluster, tiny_policy: Path, dialogue: Dialogue
) -> None:
    said: list[str] = []

    async def probed_until(pool: EnginePool, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not reached():
            assert time.monotonic() < deadline, said
            await pool.probe()
            await asyncio.sleep(0.5)

    async def lose_a_host() -> None:
        parts = (Part(0, 1, 0), Part(1, 1, 0))
        places = Places(
            Placement(engines=parts, ranks=(), workers=(), pinned=frozenset()), "run", room_timeout_s=600, note=print
        )
        await places.reserved(60)
        config = EngineConfig(num_engines=2, max_model_len=256, max_num_seqs=4)
        spec = EngineSpec(
            model=tiny_policy,
            version=0,
            config=config,
            sampling=SamplingConfig(max_tokens=16),
            stop_token_ids=tuple(dialogue.stop_token_ids),
            seed=0,
            restarts=RestartConfig(max_per_engine=2),
        )
        pool = EnginePool(spec, places.engines, said.append)
        await pool.start()
        routed = RoutedEngines(pool.rotation, request_timeout_s=120, start_timeout_s=120)
        with routed.for_episode() as first, routed.for_episode() as second:
            prompt = dialogue.opening("hello")
            for episode in (first, second):
                await episode.generate(prompt)
            assert {first.handle, second.handle} == set(pool.handles)
            cluster.remove_node(cluster.worker_nodes[0], allow_graceful=False)
            for episode in (first, second):
                assert (await episode.generate(prompt)).response_ids
            assert first.handle == second.handle, "the episode of the lost engine moved"
        await probed_until(pool, lambda: bool(said))
        assert said[0].endswith("is gone and Ray has no room for it: 1 of 2 engines serve")
        assert len(pool.handles) == 1
        spent = pool.restarts
        for _ in range(5):
            assert len(await pool.probe()) == 1
        assert pool.restarts == spent
        cluster.add_node(num_cpus=1)
        await probed_until(pool, lambda: len(said) == 2)
        assert said[1].endswith("serves again: 2 of 2 engines serve")
        assert len(await pool.sample([prompt])) == 2, "both answer"
        await pool.stop()

    asyncio.run(lose_a_host())
