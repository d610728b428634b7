"""Parts whose host is gone: what a real Ray says of their places, and what pools do, on handles that answer as told."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import ray
from ray.cluster_utils import Cluster

from milepost.actors.engine import EngineConfig
from milepost.cluster.base.exits import DependencyLost
from milepost.cluster.base.restarts import RestartConfig
from milepost.cluster.hosts.places import NoRoom, Places
from milepost.cluster.placement.plan import Part, Placement
from milepost.cluster.pools import learners, weights
from milepost.cluster.pools.engine_pool import EnginePool
from milepost.cluster.pools.engines import Rotation
from milepost.cluster.pools.learners import LearnerPool
from milepost.cluster.pools.weights import StoredDelivery
from tests.cluster.pools.hosts.pool_rig import SPEC, Handle, HostPlace, settled, spawned_handles


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A Ray of two raylets on this machine, each with one CPU; a raylet that is killed is soon called dead."""
    health = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": health})
    try:
        made.add_node(num_cpus=1)
        ray.init(address=made.address, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


async def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


@pytest.mark.services
def test_a_part_whose_host_is_killed_has_no_place_until_another_host_joins(cluster: Cluster) -> None:
    class Present:  # in here: Ray's processes do not find the modules of tests
        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    async def lose_a_host() -> None:
        placement = Placement(engines=(Part(0, 1, 0),), ranks=(), workers=(Part(1, 1, 0),), pinned=frozenset())
        places = Places(placement, "run", room_timeout_s=0.5, note=print)
        await places.reserved(60)
        both = [places.engines, places.workers]
        assert [place.lost_host(0) for place in both] == [None, None]
        (killed,) = cluster.worker_nodes
        cluster.remove_node(killed, allow_graceful=False)
        await until(lambda: any(place.lost_host(0) for place in both))
        (lost,) = (place for place in both if place.lost_host(0))
        assert lost.lost_host(0) == killed.node_ip_address
        with pytest.raises(
            NoRoom,
            match=rf"1 of 1 (engine|worker)s lost their host {killed.node_ip_address}, and Ray had no room for them "
            r"within restarts\.room_timeout_s = 0\.5: give Ray a host and go on with milepost train --resume",
        ):
            await lost.regained()
        joined = cluster.add_node(num_cpus=1)
        await until(lambda: lost.lost_host(0) is None)
        await lost.regained()
        assert await ray.remote(Present).options(**lost.options(0)).remote().node.remote() == joined.node_id

    asyncio.run(lose_a_host())


def test_a_learner_that_waits_on_a_lost_host_is_started_once_there_is_room_and_that_costs_one_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray learns that a host is gone after its ranks were started there again."""
    starts: list[str] = []
    monkeypatch.setattr(learners, "_LOOK_EVERY_S", 0.0)

    async def lose_a_host() -> int:
        place = HostPlace()
        recipe = SimpleNamespace(learner=SimpleNamespace(ranks=2))
        spec = SimpleNamespace(recipe=recipe, restarts=RestartConfig(max_learner=1), transfer="file")
        pool = LearnerPool(spec, None, place)  # type: ignore[arg-type]

        async def start(_loaded: object) -> None:
            starts.append("begun")
            if len(starts) == 1:
                place.lost = {1}
                asyncio.get_running_loop().call_later(0.05, place.lost.clear)
                await asyncio.Event().wait()
            starts.append("done")

        monkeypatch.setattr(pool, "start", start)
        await pool.recover(None)
        return pool.restarts

    assert asyncio.run(lose_a_host()) == 1
    assert starts == ["begun", "begun", "done"]


def test_weights_keep_their_way_while_a_host_is_gone_since_engines_come_back_on_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alive = [{}, {}]
    monkeypatch.setattr(weights, "alive_hosts", lambda: alive)
    spec = SimpleNamespace(restarts=RestartConfig(), transfer="auto")
    pool = LearnerPool(spec, SimpleNamespace(for_engines="engines"), HostPlace())  # type: ignore[arg-type]
    del alive[1]

    async def answer(method: str, *_: object, timeout_s: float) -> list[str]:  # noqa: ARG001
        return [method]

    monkeypatch.setattr(pool, "_all", answer)
    delivery = asyncio.run(pool.delivery(3))
    assert isinstance(delivery, StoredDelivery)
    assert (delivery.stored, delivery.version) == ("store_weights", 3)


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> list[Handle]:
    return spawned_handles(monkeypatch)


def test_an_engine_whose_host_is_gone_is_missed_aloud_and_costs_no_restart_until_there_is_room(
    spawned: list[Handle],
) -> None:
    async def lose_a_host() -> list[str]:
        place, said = HostPlace(), list[str]()
        limits = RestartConfig(max_per_engine=1)
        pool = EnginePool(replace(SPEC, config=EngineConfig(num_engines=2), restarts=limits), place, said.append)
        await pool.start()
        spawned[1].dead = True
        place.lost = {1}
        for _ in range(20):
            assert len(await pool.probe()) == 1
            await settled()
        assert (len(spawned), pool.restarts, pool.rotation) == (2, 0, Rotation([spawned[0]], is_growing=True))
        place.lost = set()
        for _ in range(2):
            await pool.probe()
            await settled()
        assert (pool.handles, pool.restarts, pool.is_replacing) == ([spawned[0], spawned[2]], 1, False)
        return said

    lost, back = asyncio.run(lose_a_host())
    assert lost.startswith("engine 1 died: ")
    assert lost.endswith("; its host hostB is gone and Ray has no room for it: 1 of 2 engines serve")
    assert back == "engine 1 serves again: 2 of 2 engines serve"


def test_a_restart_on_a_host_that_ray_does_not_know_to_be_lost_is_given_up_as_soon_as_it_does(
    spawned: list[Handle], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose_a_host() -> tuple[list[str], Rotation]:
        place, said = HostPlace(), list[str]()
        pool = EnginePool(replace(SPEC, config=EngineConfig(num_engines=2)), place, said.append)
        await pool.start()
        spawned[1].dead = True
        monkeypatch.setattr(Handle, "starts_at_once", False)
        await pool.probe()
        await settled()
        assert (len(spawned), said, pool.is_replacing) == (3, [], True)
        place.lost = {1}
        await pool.probe()
        return said, pool.rotation

    said, rotation = asyncio.run(lose_a_host())
    assert said == ["engine 1 died; its host hostB is gone and Ray has no room for it: 1 of 2 engines serve"]
    assert rotation == Rotation([spawned[0]], is_growing=True)


def test_a_host_that_does_not_come_back_in_time_ends_the_run_only_where_too_few_engines_are_left(
    spawned: list[Handle],
) -> None:
    async def lose(num_lost: int, min_engines: int) -> EnginePool:
        place = HostPlace()
        limits = RestartConfig(room_timeout_s=0.05, min_engines=min_engines)
        pool = EnginePool(replace(SPEC, config=EngineConfig(num_engines=2), restarts=limits), place)
        await pool.start()
        place.lost = set(range(num_lost))
        for handle in spawned[-2:][:num_lost]:
            handle.dead = True
        await pool.probe()
        assert pool.is_replacing
        await asyncio.sleep(0.06)
        await pool.probe()
        return pool

    pool = asyncio.run(lose(num_lost=1, min_engines=1))
    assert (pool.handles, pool.is_replacing) == ([spawned[1]], False)
    for num_lost, min_engines, left in ((1, 2, 1), (2, 1, 0)):
        with pytest.raises(
            DependencyLost,
            match=r"died: .*; its host hostB is gone and Ray has no room for it within restarts\.room_timeout_s = "
            rf"0\.05, and {left} engines are left: milepost train --resume goes on",
        ):
            asyncio.run(lose(num_lost, min_engines))
