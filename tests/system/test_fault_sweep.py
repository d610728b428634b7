"""Longer faults in real runs, one run each: `make faults`. Each goes on, or ends with all that it learnt."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from milepost.learner.zero import checkpoint
from tests.system.driving import START_S, Driver, is_alive, write_config

pytestmark = [pytest.mark.services, pytest.mark.sweep]
_NEVER = 10_000


def newest_checkpoint(driver: Driver) -> int:
    """The iteration of the newest checkpoint that verifies."""
    found = checkpoint.newest_valid(driver.folder.checkpoints)
    return found.manifest.record.iteration if found else 0


@pytest.mark.timeout(900)
def test_a_service_away_for_a_minute_is_waited_for_and_one_that_stays_away_costs_no_update(
    tmp_path: Path, tiny_policy: Path, start: Callable[..., Driver]
) -> None:
    outage = tmp_path / "outage"
    config = write_config(
        tmp_path,
        tiny_policy,
        run={"iterations": _NEVER, "checkpoint_every": _NEVER, "stall_timeout_s": 600},
        env={"path": "tests.served_env:ServedCoinEnv", "options": {"outage": str(outage), "delay_s": 0.03}},
        actors={"give_up_after_s": 90.0},
    )
    driver = start("train", config)
    driver.wait_for_iteration(3, START_S)
    outage.touch()
    began, before = time.monotonic(), driver.records()[-1]
    driver.wait_for("the end of the outage", lambda: time.monotonic() > began + 60, 90)
    outage.unlink()
    driver.wait_for_iteration(driver.records()[-1].iteration + 4, START_S)
    lost = driver.records()[-1].ledger["env_failed"] - before.ledger["env_failed"]
    assert 32 < lost < 320, "more than eight groups' worth, and few enough for a service to come back"
    outage.touch()
    assert driver.end(START_S) == 2, driver.said()
    assert "episodes in a row failed within 9" in driver.said()
    assert "ConnectionError: the service is away" in driver.said()
    assert newest_checkpoint(driver) == driver.records()[-1].iteration
    assert driver.left(deadline_s=10) == []


@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", ["killed", "stopped"])
def test_an_engine_that_is_lost_and_slow_to_come_back_costs_no_run(
    tmp_path: Path, tiny_policy: Path, start: Callable[..., Driver], fault: str
) -> None:
    config = write_config(
        tmp_path,
        tiny_policy,
        run={"iterations": _NEVER, "checkpoint_every": _NEVER, "stall_timeout_s": 30},
        engine={"max_model_len": 512, "max_num_seqs": 32, "request_timeout_s": 20},
        actors={"concurrent_groups": 6, "env_threads": 24, "give_up_after_s": 10.0},
    )
    driver = start("train", config)
    driver.wait_for_iteration(3, START_S)
    [core], [actor] = driver.find(r"VLLM::EngineCore"), driver.find(r"ray::EngineActor")
    if fault == "killed":
        core.kill()
    else:
        core.suspend()
    driver.wait_for("its replacement", lambda: {*driver.find(r"ray::EngineActor")} - {actor} != set(), 60)
    [fresh] = {*driver.find(r"ray::EngineActor")} - {actor}
    fresh.suspend()  # as a start that takes two minutes
    began, before = time.monotonic(), driver.records()[-1].iteration
    driver.wait_for("the slow start", lambda: time.monotonic() > began + 120, 150)
    fresh.resume()
    driver.wait_for_iteration(before + 5, START_S)
    last = driver.records()[-1]
    assert (last.engine_restarts, last.ledger["env_failed"]) == (1, 0)
    assert last.ledger["infra_failed"] == 0, "every request was sampled again"
    assert not is_alive(core)
    driver.process.terminate()
    assert driver.end(START_S) == 3, driver.said()
    assert driver.left(deadline_s=10) == []


@pytest.mark.timeout(1200)
def test_an_update_of_six_minutes_is_waited_for(
    tmp_path: Path, tiny_policy: Path, start: Callable[..., Driver]
) -> None:
    driver = start("train", write_config(tmp_path, tiny_policy, run={"iterations": _NEVER}))
    driver.wait_for_iteration(3, START_S)
    [learner] = driver.find(r"ray::LearnerActor")
    learner.suspend()
    began = time.monotonic()
    driver.wait_for("the slow update", lambda: time.monotonic() > began + 360, 400)
    held = driver.records()[-1]
    learner.resume()
    driver.wait_for_iteration(held.iteration + 3, START_S)
    slow, last = max(driver.records(), key=lambda record: record.train_s or 0), driver.records()[-1]
    assert slow.iteration == held.iteration + 1
    assert (slow.train_s or 0) > 350
    assert last.learner_restarts == last.ledger["infra_failed"] == last.ledger["env_failed"] == 0
    driver.process.terminate()
    assert driver.end(START_S) == 3, driver.said()
    assert newest_checkpoint(driver) == driver.records()[-1].iteration


@pytest.mark.timeout(1800)
def test_thirty_workers_killed_within_an_hour_cost_no_episode(
    tmp_path: Path, tiny_policy: Path, start: Callable[..., Driver]
) -> None:
    config = write_config(
        tmp_path,
        tiny_policy,
        run={"iterations": _NEVER},
        restarts={"window_s": 360},  # an hour in six minutes: pauses shrink with it
    )
    driver = start("train", config)
    driver.wait_for_iteration(2, START_S)
    killed: set[psutil.Process] = set()
    while len(killed) < 30:
        driver.wait_for("a worker", lambda: bool({*driver.find(r"ray::WorkerActor")} - killed), START_S)
        driver.wait_for_iteration(driver.records()[-1].iteration + 2, START_S)
        [worker] = {*driver.find(r"ray::WorkerActor")} - killed
        worker.kill()
        killed.add(worker)
    driver.wait_for("the last loss to count", lambda: driver.records()[-1].worker_restarts == 30, START_S)
    driver.wait_for_iteration(driver.records()[-1].iteration + 3, START_S)
    ledger = driver.records()[-1].ledger
    assert ledger["infra_failed"] == ledger["env_failed"] == 0
    driver.process.terminate()
    assert driver.end(START_S) == 3, driver.said()
    assert newest_checkpoint(driver) == driver.records()[-1].iteration


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.decode()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.timeout(900)
def test_a_disk_that_fills_ends_a_run_with_its_last_step_saved_and_room_lets_it_go_on(
    tmp_path: Path, small_disk: Path, tiny_policy: Path, start: Callable[..., Driver]
) -> None:
    runs = tmp_path / "runs"
    runs.symlink_to(small_disk)
    config = write_config(
        tmp_path, tiny_policy, run={"iterations": _NEVER, "checkpoint_every": 1, "stall_timeout_s": 90}
    )
    driver = start("train", config)
    driver.wait_for_iteration(3, START_S)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    assert os.statvfs(small_disk).f_bavail == 0
    assert driver.end(START_S) == 4, driver.said()
    [line] = [line for line in driver.out.read_text().splitlines() if line.startswith("milepost: ")]
    # Who meets it first, a checkpoint, a log or Redis, is chance; torch has words of its own for it.
    assert any(words in line for words in ("make room and go on", "No space left on device", "waited 90 s for Redis"))
    assert newest_checkpoint(driver) >= driver.records()[-1].iteration > 2
    assert driver.left(deadline_s=10) == []
    filler.unlink()
    done = newest_checkpoint(driver)
    resumed = start("train", config, "--resume", "latest", "--set", f"run.iterations={done + 2}")
    assert resumed.end(START_S) == 0, resumed.said()
    assert newest_checkpoint(resumed) == done + 2
