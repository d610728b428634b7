"""A run over two hosts: driver and Ray's head on A; engine, learner and workers on B."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.driving import START_S, write_config
from tests.system.two_hosts import TwoHosts, two_hosts

pytestmark = pytest.mark.services
BUFFER = {"url_env": "REDIS_OF_THE_RUN"}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Iterator[TwoHosts]:
    """Both hosts, with a policy where both see it."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(tiny_policy, folder / "policy")
    with two_hosts(folder) as found:
        if isinstance(found, str):
            pytest.skip(found)
        yield found


@pytest.mark.timeout(900)
def test_a_run_over_two_hosts_trains_with_weights_that_cross_between_them(hosts: TwoHosts) -> None:
    run = {"iterations": 3, "max_staleness": 0}
    driver = hosts.train(write_config(hosts.place("trains"), hosts.policy, run=run, buffer=BUFFER))
    driver.wait_for_iteration(1, START_S)
    for part in ("EngineActor", "LearnerActor", "WorkerActor"):
        assert f"ray::{part}" in hosts.on("B", "ps", "-eo", "args"), f"no {part} on B"
        assert f"ray::{part}" not in hosts.on("A", "ps", "-eo", "args")
    assert driver.end(START_S) == 0, driver.said()
    records = driver.records()
    assert [record.iteration for record in records] == [1, 2, 3]
    # Every group was sampled by the version that it trains, and the learner computes the log-probs again.
    gaps = [record.parity for record in records if record.parity is not None]
    assert len(gaps) == 3
    assert max(gaps) < 1e-3
    assert "milepost-" not in hosts.on("B", "ls", "/dev/shm"), "the weights' memory is given back on B, too"


@pytest.mark.timeout(600)
def test_a_run_whose_redis_only_one_host_reaches_is_refused(hosts: TwoHosts) -> None:
    driver = hosts.train(write_config(hosts.place("refused"), hosts.policy))
    assert driver.end(START_S) == 2, driver.said()
    assert "Ray has 2 hosts, and this run's Redis is reached from the driver's alone" in driver.said()
