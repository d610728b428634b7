"""Kill -9 of every part of one run, one at a time: it goes on, the ledger balances, nothing is trained twice."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from milepost.cluster.runlog.records import evals, read_records
from tests.system.driving import START_S, Driver, is_alive, surviving_commits, write_config

pytestmark = pytest.mark.services
_ITERATIONS = 32
_CHECKPOINT_EVERY = 5


@pytest.mark.timeout(900)
def test_a_run_survives_the_death_of_every_part(
    tmp_path: Path, tiny_policy: Path, start: Callable[..., Driver]
) -> None:
    settings = {"iterations": _ITERATIONS, "checkpoint_every": _CHECKPOINT_EVERY, "eval_episodes": 64}
    learner = {"lr": 1e-3, "ranks": 2}  # the one that survives must not be taken for the culprit
    config = write_config(tmp_path, tiny_policy, run=settings, learner=learner)
    driver = start("train", config)
    driver.wait_for("the evaluation", lambda: "evaluating train" in driver.said(), START_S)
    driver.wait_for("its worker", lambda: bool(driver.find(r"ray::WorkerActor")), START_S)
    kill_for_good(driver, r"ray::WorkerActor")
    driver.wait_for_iteration(2, START_S)
    lose(driver, r"ray::WorkerActor", restarts="worker_restarts")
    lose_redis(driver)
    lose(driver, r"VLLM::EngineCore", restarts="engine_restarts")
    versions_after_engine = driver.records()[-1].policy_version
    driver.wait_for("updates without a checkpoint", lambda: updates_at_risk(driver) in (2, 3), START_S)
    lose(driver, r"ray::LearnerActor", restarts="learner_restarts")
    assert driver.end(START_S) == 0, driver.said()
    assert driver.left(deadline_s=10) == []

    records = driver.records()
    assert [record.iteration for record in records] == list(range(1, _ITERATIONS + 1))
    last = records[-1]
    assert (last.worker_restarts, last.engine_restarts, last.learner_restarts) == (2, 1, 1)
    assert [record.episodes for record in evals(read_records(driver.folder.metrics), "train")] == [64, 64]
    gaps = [r.parity for r in records if r.policy_version > versions_after_engine and r.parity is not None]
    assert gaps, "no update after the engine's replacement was checked"
    assert max(gaps) < 1e-3
    log = driver.folder.driver_log.read_text()
    assert len(re.findall(r"version \d+ consumed", log)) > _ITERATIONS, "the learner's death undid no update"
    commits = dict(surviving_commits(log))
    assert sorted(commits) == list(range(1, _ITERATIONS + 1))
    trained = [group_id for group_ids in commits.values() for group_id in group_ids]
    assert len(set(trained)) == len(trained) == 4 * _ITERATIONS
    assert last.ledger["trained"] + last.ledger["applied"] + last.ledger["filtered"] == 4 * len(trained)
    assert last.ledger["env_failed"] == last.ledger["dead_letter"] == 0


def updates_at_risk(driver: Driver) -> int:
    """Updates since the last checkpoint."""
    return driver.records()[-1].iteration % _CHECKPOINT_EVERY


def lose(driver: Driver, pattern: str, *, restarts: str) -> None:
    """Kill the process that matches; wait until the run has replaced it and made two more updates."""
    before = getattr(driver.records()[-1], restarts)
    kill_for_good(driver, pattern)

    def has_been_replaced() -> bool:
        return bool(getattr(driver.records()[-1], restarts) == before + 1)

    driver.wait_for(f"{restarts} to count the loss", has_been_replaced, START_S)
    driver.wait_for(f"another {pattern}", lambda: bool(driver.find(pattern)), START_S)
    driver.wait_for_iteration(driver.records()[-1].iteration + 2, START_S)


def lose_redis(driver: Driver) -> None:
    """Kill the embedded server; it must come back on its append-only file, and the run go on."""
    victim = kill_for_good(driver, r"redis-server")
    driver.wait_for("redis-server to come back", lambda: bool(driver.find(r"redis-server")), deadline_s=30)
    assert victim not in driver.find(r"redis-server")
    driver.wait_for_iteration(driver.records()[-1].iteration + 2, START_S)
    assert re.search("redis-server ended; starting it again", driver.folder.driver_log.read_text())


def kill_for_good(driver: Driver, pattern: str) -> psutil.Process:
    """Kill -9 a process that matches, with proof that it is gone."""
    victim = driver.find(pattern)[-1]
    victim.kill()
    driver.wait_for(f"the death of {victim.pid}", lambda: not is_alive(victim), deadline_s=10)
    return victim
