"""What a run reserves on a real Ray, which was only told that it has a GPU."""

import asyncio
import re
from collections.abc import Iterator

import pytest
import ray

from milepost.cluster.base.exits import DependencyLost
from milepost.cluster.hosts import places
from milepost.cluster.hosts.places import Places, hosts
from milepost.cluster.placement.hosts import Build, Host
from milepost.cluster.placement.plan import Placement, place
from milepost.cluster.settings.config import RunConfig

pytestmark = pytest.mark.services
MISSING = (
    r"the run takes 1 GPUs and 1\.98 CPUs, 2 of its 2 bundles on the driver's host, and of the 1 hosts "
    r"\S+ and \S+ are free"
)
"""What is free is told a moment later than it is."""


@pytest.fixture(scope="module")
def one_gpu() -> Iterator[None]:
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    yield
    ray.shutdown()


def shared() -> Placement:
    return place(RunConfig(), hosts(), Build(engine=True, learner=True), learns=True, is_final=True)


@pytest.mark.usefixtures("one_gpu")
def test_an_engine_and_a_rank_get_the_same_gpu_and_a_worker_none() -> None:
    class Part:  # in here: Ray's processes do not find the modules of tests
        def gpus(self) -> list[str]:
            return list(ray.get_runtime_context().get_accelerator_ids()["GPU"])

    assert hosts() == [Host(2, 1)]
    reserved = Places(shared(), "run", room_timeout_s=60, note=print)
    asyncio.run(reserved.reserved(60))
    started = [
        ray.remote(Part).options(**options).remote()
        for options in (reserved.engines.options(0), reserved.ranks.options(0), reserved.workers.options(0))
    ]
    assert ray.get([actor.gpus.remote() for actor in started], timeout=120) == [["0"], ["0"], []]
    reserved.release()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(started[2].gpus.remote(), timeout=60)


@pytest.mark.usefixtures("one_gpu")
def test_room_that_another_run_holds_is_waited_for_aloud_and_up_to_a_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(places, "_FIRST_WORD_S", 0.0)
    placement, told, heard = shared(), list[str](), asyncio.Event()

    def hear(text: str) -> None:
        told.append(text)
        heard.set()

    async def wait_for_the_other() -> None:
        first = Places(placement, "first", room_timeout_s=60, note=told.append)
        await first.reserved(60)
        told.clear()
        late = Places(placement, "late", room_timeout_s=60, note=hear)
        with pytest.raises(DependencyLost, match=rf"within engine\.start_timeout_s = 0: {MISSING}; add hosts"):
            await late.reserved(0)
        waiting = asyncio.ensure_future(late.reserved(60))
        await heard.wait()
        first.release()
        await waiting
        late.release()

    asyncio.run(wait_for_the_other())
    (said,) = told
    assert re.fullmatch(rf"waiting for room on Ray, 60 s at most: {MISSING}", said)
