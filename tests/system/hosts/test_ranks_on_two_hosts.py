"""A learner whose ranks lie on two hosts, one of which is lost and comes back while the run waits for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.system.driving import START_S, write_config
from tests.system.two_hosts import two_hosts

pytestmark = [pytest.mark.services, pytest.mark.sweep]


@pytest.mark.timeout(1500)
def test_ranks_on_two_hosts_train_together_and_go_on_from_the_checkpoint_when_a_lost_host_is_back(
    tmp_path: Path, tiny_policy: Path
) -> None:
    shutil.copytree(tiny_policy, tmp_path / "policy")
    with two_hosts(tmp_path, cpus_of_a=2, cpus_of_b=3) as hosts:  # Ray fills the larger one first: engines, rank 0
        if isinstance(hosts, str):
            pytest.skip(hosts)
        config = write_config(
            hosts.place("ranks"),
            hosts.policy,
            run={"iterations": 5, "checkpoint_every": 1},
            engine={"num_engines": 2},
            learner={"ranks": 2},
            restarts={"room_timeout_s": START_S},
            buffer={"url_env": "REDIS_OF_THE_RUN"},
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
