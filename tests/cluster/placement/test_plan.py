"""Which bundles a run reserves on which hosts, by hand."""

import pytest

from milepost.actors.engine import EngineConfig
from milepost.actors.worker import ActorConfig
from milepost.cluster.base.exits import ConfigError
from milepost.cluster.placement.hosts import Build, Host
from milepost.cluster.placement.plan import Part, Placement, place
from milepost.cluster.replay.buffer import BufferConfig
from milepost.cluster.settings.config import RunConfig
from milepost.learner.config import LearnerConfig

CPU, CUDA = Build(engine=False, learner=False), Build(engine=True, learner=True)


def config(*, engines: int = 1, tp: int = 1, ranks: int = 1, workers: int = 1, transfer: str = "file") -> RunConfig:
    return RunConfig(
        engine=EngineConfig(num_engines=engines, tensor_parallel_size=tp, transfer=transfer),
        learner=LearnerConfig(ranks=ranks),
        actors=ActorConfig(num_workers=workers),
        buffer=BufferConfig(url_env="REDIS"),
    )


def placed(run: RunConfig, *hosts: Host, build: Build = CUDA, learns: bool = True, is_final: bool = False) -> Placement:
    return place(run, hosts, build, learns=learns, is_final=is_final)


def test_a_host_without_gpus_has_a_bundle_of_one_cpu_for_each_part() -> None:
    found = placed(config(engines=2, workers=3), Host(64, 0), build=CPU, is_final=True)
    assert found.bundles == [{"CPU": 1.0}] * 6
    assert [part.bundle for part in (*found.engines, *found.ranks, *found.workers)] == [0, 1, 2, 3, 4, 5]
    assert (found.totals, found.shares_gpus) == ((0, 6), False)


def test_processes_share_the_cpus_of_a_single_host_that_has_too_few() -> None:
    found = placed(config(), Host(2, 0), build=CPU)
    assert [part.cpus for part in (*found.engines, *found.ranks, *found.workers)] == [0.66] * 3
    assert found.totals == (0, 1.98)
    assert placed(config(workers=300), Host(2, 0), build=CPU).workers[0].cpus == 0.01, "at the least"


def test_whole_cpus_are_waited_for_where_other_hosts_may_have_them() -> None:
    several = placed(config(transfer="nccl"), Host(1, 0), Host(1, 0), build=CPU)
    head_alone = placed(config(), Host(2, 0))  # its GPUs are still to come
    no_cpus = placed(config(), Host(0, 0), build=CPU)
    assert [found.totals for found in (several, head_alone, no_cpus)] == [(0, 3), (2, 3), (0, 3)]


def test_an_engine_and_a_rank_share_the_one_gpu_of_a_single_host() -> None:
    found = placed(config(), Host(8, 1), is_final=True)
    assert (found.engines, found.ranks, found.workers) == ((Part(0, 1, 0.5),), (Part(0, 1, 0.5),), (Part(1, 1, 0),))
    assert found.bundles == [{"CPU": 2, "GPU": 1}, {"CPU": 1}]
    assert found.shares_gpus


def test_only_as_many_gpus_are_shared_as_are_missing() -> None:
    found = placed(config(engines=2, ranks=2), Host(8, 3))
    assert [part.gpus for part in found.engines] == [0.5, 1]
    assert found.ranks == (Part(0, 1, 0.5), Part(2, 1, 1))
    assert found.bundles == [{"CPU": 2, "GPU": 1}, {"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}, {"CPU": 1}]


def test_an_engine_takes_the_gpus_of_its_tensor_parallelism_in_one_bundle_so_on_one_host() -> None:
    found = placed(config(engines=4, tp=2, ranks=8, workers=2, transfer="nccl"), Host(64, 8), Host(64, 8))
    assert found.bundles == [{"CPU": 1, "GPU": 2}] * 4 + [{"CPU": 1, "GPU": 1}] * 8 + [{"CPU": 1}] * 2
    assert (found.totals, found.pinned) == ((16, 14), frozenset())


def test_an_evaluation_has_no_rank_and_shares_no_gpu() -> None:
    found = placed(config(), Host(8, 1), learns=False, is_final=True)
    assert (found.engines, found.ranks) == ((Part(0, 1, 1),), ())


def test_a_cpu_build_of_the_engine_leaves_the_gpu_to_the_learner() -> None:
    found = placed(config(), Host(8, 1), build=Build(engine=False, learner=True), is_final=True)
    assert (found.engines[0].gpus, found.ranks[0].gpus) == (0, 1)


def test_weights_in_shared_memory_keep_engines_and_the_first_rank_on_the_drivers_host() -> None:
    hosts = Host(64, 8), Host(64, 8)
    assert placed(config(engines=2, tp=2, ranks=4), *hosts).pinned == {0, 1, 2}
    assert placed(config(engines=1), Host(8, 1), is_final=True).pinned == {0}, "a shared GPU is one bundle"


def test_an_embedded_redis_keeps_everything_on_the_drivers_host() -> None:
    run = config(workers=2).model_copy(update={"buffer": BufferConfig()})
    assert placed(run, Host(64, 0), build=CPU).pinned == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("run", "hosts", "told"),
    [
        (
            config(engines=2, tp=2, ranks=4),
            [Host(64, 4)],
            "GPUs: 4 for engines and 4 for learner ranks are wanted, 4 here: lower engine.num_engines",
        ),
        (
            config(ranks=2),
            [Host(64, 1)],
            "GPUs: 1 for engines and 2 for learner ranks are wanted, 1 here",
        ),
        (
            config(transfer="nccl"),
            [Host(64, 1)],
            'engine.transfer = "nccl" needs a GPU for each engine and learner rank, 2 in all, and there are 1: leave '
            "engine.transfer out",
        ),
        (
            config().model_copy(update={"buffer": BufferConfig()}),
            [Host(64, 8), Host(64, 8)],
            "Ray has 2 hosts and buffer.url_env is empty: workers on other hosts do not reach an embedded Redis",
        ),
        (
            config(engines=4, ranks=4),
            [Host(4, 0), Host(64, 8)],
            "driver's host, which has 0 of the 5 GPUs that engines and learner rank 0 take: set engine.transfer",
        ),
        (
            config(engines=4),
            [Host(4, 8), Host(64, 8)],
            "driver's host, which has 4 of the 5 CPUs that engines and learner rank 0 take",
        ),
    ],
)
def test_what_these_hosts_can_never_hold_is_refused_by_number(run: RunConfig, hosts: list[Host], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        placed(run, *hosts, is_final=len(hosts) == 1)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
