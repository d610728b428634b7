"""A real Prometheus on real runs: every panel shows something, a healthy run is silent, faults fire their alerts.

`make monitoring`. The alerts' windows are those that people get, so the second run takes many minutes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.monitoring import monitor
from milepost.cluster.base.ports import free_port
from milepost.cluster.replay import redis_server
from milepost.cluster.replay.client import connect_sync
from milepost.cluster.replay.store import Store
from tests.monitoring.nan_reward import SWITCH
from tests.monitoring.queries import queries
from tests.monitoring.test_monitor import ask, needs_prometheus
from tests.system.conftest import start as start
from tests.system.driving import START_S, Driver, write_config

pytestmark = [pytest.mark.services, pytest.mark.sweep, needs_prometheus]
Start = Callable[..., Driver]
_NEVER = 10_000
_FIRES_S = 900


class Watched:
    """Prometheus on the runs of one folder."""

    def __init__(self, runs_dir: Path, place: Path) -> None:
        self._runs_dir, self._place = runs_dir, place
        self.port = free_port()
        place.mkdir()
        self.process = monitor.start_prometheus(place, self.port)

    def look(self) -> None:
        """As `make monitor` does every two seconds."""
        monitor.write_targets(self._runs_dir, self._place)

    def series(self, query: str) -> list[dict[str, Any]]:
        self.look()
        return list(ask(self.port, "query", query=query)["result"])

    def firing(self) -> set[str]:
        return {found["metric"]["alertname"] for found in self.series('ALERTS{alertstate="firing"}')}


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    runs_dir = tmp_path / "runs"
    runs_dir.mkdir()
    watched = Watched(runs_dir, tmp_path / "prometheus")
    yield watched
    watched.process.terminate()
    watched.process.wait(30)


def environments() -> list[dict[str, Any]]:
    coin = {"path": "tests.coin_env:CoinEnv", "train_size": 64, "heldout_size": 16, "ood_size": 16}
    return [
        coin | {"name": "long", "options": {"cohort": "three", "delay_s": 0.03}, "ood_options": {"delay_s": 0.01}},
        coin | {"name": "short", "options": {"cohort": "two", "turns": 2}, "ood_options": {"turns": 1}},
    ]


@pytest.mark.timeout(1800)
def test_every_panel_of_every_dashboard_shows_a_series_of_a_healthy_run_and_no_alert_fires(
    tmp_path: Path, tiny_policy: Path, start: Start, watched: Watched
) -> None:
    run = {"iterations": _NEVER, "eval_episodes": 8, "eval_every": 4, "eval_splits": ["train", "heldout", "ood"]}
    driver = start(
        "train", write_config(tmp_path, tiny_policy, run=run, env=environments(), filter={"method": "top_p"})
    )
    fired: set[str] = set()

    def enough() -> bool:
        fired.update(watched.firing())
        return len(driver.records()) >= 12 and not missing(watched)

    driver.wait_for_iteration(1, START_S)
    deadline = time.monotonic() + START_S
    while not enough():
        assert time.monotonic() < deadline, f"no series for {missing(watched)}\n{driver.said()}"
        time.sleep(2)
    assert fired == set()
    driver.process.terminate()
    assert driver.end(START_S) == 3, driver.said()


def missing(watched: Watched) -> list[str]:
    """Panels of which a query returns nothing; those of the registry are `milepost serve`'s, not a run's."""
    of_a_run = [(where, query) for where, query in queries() if not re.search("rollback|promotions|_version$", query)]
    return [f"{where}: {query}" for where, query in of_a_run if not watched.series(query)]


@pytest.mark.timeout(3600)
def test_faults_of_a_real_run_fire_their_alerts(
    tmp_path: Path, tiny_policy: Path, start: Start, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    monkeypatch.setenv(SWITCH, str(broken))
    with redis_server.start(tmp_path / "redis", maxmemory_bytes=1 << 28) as redis:
        monkeypatch.setenv("MILEPOST_TEST_REDIS", redis.url)
        config = write_config(
            tmp_path,
            tiny_policy,
            run={"iterations": _NEVER, "stall_timeout_s": 3600},
            buffer={"url_env": "MILEPOST_TEST_REDIS", "max_bytes": 120_000},
            reward={"path": "tests.monitoring.nan_reward:reward"},
            restarts={"window_s": 360},
        )
        driver = start("train", config)
        driver.wait_for_iteration(3, START_S)
        assert watched.firing() == set()

        an_engine_dies_and_its_replacement_hangs(driver, watched)
        workers_die_three_times(driver, watched)
        broken.touch()
        wait_for_alert(driver, watched, "MilepostEpisodesFailing")
        broken.unlink()
        [learner] = driver.find(r"ray::LearnerActor")
        learner.suspend()
        wait_for_alert(driver, watched, "MilepostBufferFull")
        wait_for_alert(driver, watched, "MilepostNoProgress")
        store = Store(connect_sync(redis.url), driver.folder.run_id)  # type: ignore[arg-type]
        connect_sync(redis.url).hincrby(store.counts, "trained", 5)
        wait_for_alert(driver, watched, "MilepostLedgerOutOfBalance")
        learner.resume()
        assert driver.end(START_S) == 1, driver.said()
        assert "the ledger does not balance" in driver.said()


def an_engine_dies_and_its_replacement_hangs(driver: Driver, watched: Watched) -> None:
    [core], [actor] = driver.find(r"VLLM::EngineCore"), driver.find(r"ray::EngineActor")
    core.kill()
    driver.wait_for("its replacement", lambda: bool({*driver.find(r"ray::EngineActor")} - {actor}), START_S)
    [replacement] = {*driver.find(r"ray::EngineActor")} - {actor}
    replacement.suspend()
    wait_for_alert(driver, watched, "MilepostEngineDown")
    replacement.resume()
    driver.wait_for("it to serve", lambda: "MilepostEngineDown" not in watched.firing(), START_S)


def workers_die_three_times(driver: Driver, watched: Watched) -> None:
    killed: set[psutil.Process] = set()
    while len(killed) < 3:
        driver.wait_for("a worker", lambda: bool({*driver.find(r"ray::WorkerActor")} - killed), START_S)
        [worker] = {*driver.find(r"ray::WorkerActor")} - killed
        worker.kill()
        killed.add(worker)
    wait_for_alert(driver, watched, "MilepostRestartStorm")


def wait_for_alert(driver: Driver, watched: Watched, name: str) -> None:
    driver.wait_for(f"{name} to fire", lambda: name in watched.firing(), _FIRES_S)
