"""A run that goes on though a host was lost: without what lay there, or once the host is back.

Ray fills the larger host first, with engines, then ranks, then workers.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.system.driving import START_S, write_config
from tests.system.two_hosts import two_hosts

pytestmark = [pytest.mark.services, pytest.mark.sweep]
BUFFER = {"url_env": "REDIS_OF_THE_RUN"}


@pytest.mark.timeout(1500)
def test_groups_of_a_worker_whose_host_is_lost_are_played_by_the_worker_that_is_left(
    tmp_path: Path, tiny_policy: Path
) -> None:
    shutil.copytree(tiny_policy, tmp_path / "policy")
    with two_hosts(tmp_path, cpus_of_a=3, cpus_of_b=1) as hosts:
        if isinstance(hosts, str):
            pytest.skip(hosts)
        run, actors = {"iterations": 500}, {"num_workers": 2, "concurrent_groups": 3}
        driver = hosts.train(write_config(hosts.place("workers"), hosts.policy, run=run, actors=actors, buffer=BUFFER))
        driver.wait_for_iteration(2, START_S)
        on_a, on_b = (hosts.on(host, "ps", "-eo", "args") for host in "AB")
        assert [on_a.count(f"ray::{part}") for part in ("EngineActor", "LearnerActor", "WorkerActor")] == [1, 1, 1]
        assert [on_b.count(f"ray::{part}") for part in ("EngineActor", "LearnerActor", "WorkerActor")] == [0, 0, 1]

        hosts.cut()
        told = "worker 1 of the pool waits for room on Ray: its host 10.77.0.2 is gone"
        driver.wait_for("the loss to be told", lambda: told in driver.said(), START_S)
        balance = hosts.balance(driver.folder.run_id)
        driver.wait_for_iteration(driver.records()[-1].iteration + 4, START_S)
        hosts.on("A", "kill", "-TERM", str(driver.folder.read_status().pid))
        assert driver.end(START_S) == 3, driver.said()
        last = driver.records()[-1]
        assert (last.engine_restarts, last.learner_restarts) == (0, 0)
        after = hosts.balance(driver.folder.run_id)
        for issued, counted in (balance, after):
            assert issued == counted
        assert after > balance


@pytest.mark.timeout(1500)
def test_ranks_on_two_hosts_train_together_and_go_on_from_the_checkpoint_when_a_lost_host_is_back(
    tmp_path: Path, tiny_policy: Path
) -> None:
    shutil.copytree(tiny_policy, tmp_path / "policy")
    with two_hosts(tmp_path, cpus_of_a=2, cpus_of_b=3) as hosts:
        if isinstance(hosts, str):
            pytest.skip(hosts)
        config = write_config(
            hosts.place("ranks"),
            hosts.policy,
            run={"iterations": 5, "checkpoint_every": 1},
            engine={"num_engines": 2},
            learner={"ranks": 2},
            restarts={"room_timeout_s": START_S},
            buffer=BUFFER,
        )
        driver = hosts.train(config)
        driver.wait_for_iteration(2, START_S)
        on_a, on_b = (hosts.on(host, "ps", "-eo", "args") for host in "AB")
        assert [on_a.count(f"ray::{part}") for part in ("EngineActor", "LearnerActor", "WorkerActor")] == [0, 1, 1]
        assert [on_b.count(f"ray::{part}") for part in ("EngineActor", "LearnerActor", "WorkerActor")] == [2, 1, 0]

        hosts.cut()
        driver.wait_for("the loss to be told", lambda: "host 10.77.0.2 is gone" in driver.out.read_text(), START_S)
        hosts.again()
        assert driver.end(3 * START_S) == 0, driver.said()
        records = driver.records()
        assert records[-1].iteration == 5
        last = records[-1]
        assert (last.learner_restarts, last.worker_restarts, last.engines_serving) == (1, 0, 2)
        gaps = [record.parity for record in records if record.parity is not None]
        assert len(gaps) >= 3
        assert max(gaps) < 1e-3
        assert "engine 1 serves again: " in driver.out.read_text()
