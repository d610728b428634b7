"""A run over two hosts: driver and Ray's head on A; engine, learner and workers on B."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from milepost.cluster.runlog.records import IterationRecord
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


@pytest.mark.timeout(1200)
def test_a_run_over_two_hosts_trains_and_after_the_loss_of_one_goes_on_when_it_is_submitted_again(
    hosts: TwoHosts,
) -> None:
    run = {"iterations": 6, "max_staleness": 0, "checkpoint_every": 1, "resume": "auto"}
    restarts = {"room_timeout_s": 5}
    config = write_config(hosts.place("trains"), hosts.policy, run=run, restarts=restarts, buffer=BUFFER)
    driver = hosts.train(config)
    driver.wait_for_iteration(1, START_S)
    for part in ("EngineActor", "LearnerActor", "WorkerActor"):
        assert f"ray::{part}" in hosts.on("B", "ps", "-eo", "args"), f"no {part} on B"
        assert f"ray::{part}" not in hosts.on("A", "ps", "-eo", "args")
    driver.wait_for_iteration(3, START_S)
    assert_parity(driver.records(), at_least=2)

    hosts.cut()
    assert driver.end(START_S) == 4, driver.said()
    last = driver.out.read_text().splitlines()[-1]
    assert "host 10.77.0.2" in last, driver.said()
    assert "within restarts.room_timeout_s = 5" in last
    assert "milepost train --resume" in last
    assert hosts.lost() == ["10.77.0.2"]
    lost_at, run_id = driver.records()[-1].iteration, driver.folder.run_id
    assert lost_at < 6, "it was lost in the middle of the run"

    hosts.again()
    resumed = hosts.train(config)
    assert resumed.end(2 * START_S) == 0, resumed.said()
    assert resumed.folder.run_id == run_id
    records = resumed.records()
    seen, saved_unseen = [record.iteration for record in records], list(range(lost_at + 2, 7))
    assert seen[:lost_at] == list(range(1, lost_at + 1))
    assert seen[lost_at:] in ([lost_at + 1, *saved_unseen], saved_unseen), "a checkpoint is written before its record"
    assert_parity(records[lost_at:], at_least=1)
    issued, counted = hosts.balance(run_id)
    assert issued == counted >= 6 * 16
    assert "milepost-" not in hosts.on("B", "ls", "/dev/shm"), "the weights' memory is given back on B, too"


def assert_parity(records: list[IterationRecord], *, at_least: int) -> None:
    """Engines answer prompts after every publication, and the learner computes the log-probs again."""
    gaps = [record.parity for record in records if record.parity is not None]
    assert len(gaps) >= at_least
    assert max(gaps) < 1e-3


@pytest.mark.timeout(600)
def test_a_run_whose_redis_only_one_host_reaches_is_refused(hosts: TwoHosts) -> None:
    driver = hosts.train(write_config(hosts.place("refused"), hosts.policy))
    assert driver.end(START_S) == 2, driver.said()
    assert "Ray has 2 hosts, and this run's Redis is reached from the driver's alone" in driver.said()
