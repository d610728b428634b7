"""What trackers are told, that one which fails is dropped, and what the real packages read back from their files."""

import threading
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.runlog.runs import RunFolder
from milepost.cluster.trackers import trackers as module
from milepost.cluster.trackers.config import TrackersConfig, require_packages
from milepost.cluster.trackers.numbers import numbers_of
from milepost.cluster.trackers.trackers import Trackers
from milepost.reward.evaluators.summary import CohortSuccess
from tests.cluster.runlog.example_records import eval_record, iteration_record

PARAMETERS = {"run.seed": 3, "learner.lr": 1e-3, "env.path": "a:B", "agent.env": [], "model.tied": True, "x": None}


def told(folder: Path, config: TrackersConfig, *, done: int = 0, until: int = 2) -> Trackers:
    """A run of which `done` iterations are done goes on to `until`."""
    folder.mkdir(exist_ok=True)
    trackers = Trackers(config)
    trackers.begin(RunFolder(folder), PARAMETERS, done)
    if not done:
        trackers.record(eval_record(0, "heldout", 0.25))
    for number in range(done + 1, until + 1):
        trackers.record(iteration_record(number, tokens=100 * number))
    trackers.record(eval_record(until, "heldout", 0.5))
    trackers.close()
    return trackers


def test_a_record_becomes_flat_numbers_under_names_that_every_tracker_takes() -> None:
    cohort = CohortSuccess(episodes=8, success=0.5, success_low=0.2, success_high=0.8)
    record = iteration_record(
        7, loss=None, entropy=float("nan"), update={"mismatch": 0.5}, cohorts={"größe 5%": cohort}, envs={}
    )
    numbers = numbers_of(record)
    assert (numbers["train/iteration"], numbers["train/tokens"]) == (7, 3200)
    assert numbers["train/update/mismatch"] == 0.5
    assert numbers["train/cohorts/gr__e 5_/success"] == 0.5
    assert not {"train/loss", "train/entropy", "train/kind"} & numbers.keys()
    assert numbers_of(eval_record(0, "ood", 0.75))["eval/ood/success"] == 0.75


def test_tensorboard_reads_what_a_run_and_its_resumption_wrote(tmp_path: Path) -> None:
    config = TrackersConfig(tensorboard=True)
    for done in (0, 2):  # the first one was killed after its third iteration, and had a checkpoint of the second
        trackers = told(tmp_path / "r1", config, done=done, until=done + 3)
        assert trackers.problems == []
    found = EventAccumulator(str(tmp_path / "r1" / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in found.Scalars("train/tokens")] == [
        (1, 100), (2, 200), (3, 300), (4, 400), (5, 500),
    ]  # fmt: skip
    assert [event.step for event in found.Scalars("eval/heldout/success")][-1] == 5
    parameters = str(found.summary_metadata["_hparams_/session_start_info"].plugin_data.content)
    assert all(name in parameters for name in ("run.seed", "learner.lr", "agent.env"))


def test_mlflow_reads_what_a_run_and_its_resumption_wrote(tmp_path: Path) -> None:
    uri = f"file:{tmp_path / 'mlruns'}"
    for done in (0, 2):
        assert told(tmp_path / "r1", TrackersConfig(mlflow=uri), done=done, until=done + 2).problems == []
    told(tmp_path / "r2", TrackersConfig(mlflow=uri))
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("milepost")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {"r1", "r2"}
    [one] = [run for name, run in runs.items() if name == "r1"]
    history = client.get_metric_history(one.info.run_id, "train/tokens")
    assert [(metric.step, metric.value) for metric in history] == [(1, 100), (2, 200), (3, 300), (4, 400)]
    assert one.data.params == {key: str(value) for key, value in PARAMETERS.items()}
    assert (one.data.tags["milepost.run"], one.info.status) == ("r1", "FINISHED")


def test_wandb_writes_a_run_and_its_resumption_into_the_runs_folder(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is an extra that the tests do without")
    for done in (0, 2):
        assert told(tmp_path / "r1", TrackersConfig(wandb="offline"), done=done, until=done + 2).problems == []
    files = sorted((tmp_path / "r1" / "wandb").glob("offline-run-*-r1/run-r1.wandb"))
    assert len(files) == 2, "both are sent under the id r1"
    assert all(b"train/tokens" in file.read_bytes() for file in files)


class Broken:
    """Raises at the second iteration."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, step: int, _: object) -> None:
        self.steps.append(step)
        if step == 2:
            raise ConnectionError("the server is gone\nand said more")

    def end(self) -> None:
        raise AssertionError("it was dropped")


def opening(monkeypatch: pytest.MonkeyPatch, tracker: Any) -> None:
    monkeypatch.setattr(module, "_opened", lambda *_: tracker)


def test_a_tracker_that_raises_is_dropped_and_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening(monkeypatch, tracker := Broken())
    trackers = told(tmp_path / "r1", TrackersConfig(tensorboard=True), until=4)
    assert tracker.steps == [0, 1, 2]
    assert trackers.problems == [
        "tensorboard is not told of the run any more (ConnectionError: the server is gone); the run goes on"
    ]


def test_a_tracker_that_hangs_holds_up_neither_the_run_nor_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    class Hanging(Broken):
        def log(self, *_: object) -> None:
            released.wait(60)

        def end(self) -> None:
            pass

    opening(monkeypatch, Hanging())
    monkeypatch.setattr(module, "_LAST_WORDS_S", 0.2)
    trackers = told(tmp_path / "r1", TrackersConfig(tensorboard=True))
    released.set()
    [problem] = trackers.problems
    assert "it did not end within 0.2 s" in problem


def test_a_tracker_that_does_not_keep_up_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    class Slow(Broken):
        def log(self, *_: object) -> None:
            released.wait(60)

    opening(monkeypatch, Slow())
    monkeypatch.setattr(module, "_WAITING", 2)
    monkeypatch.setattr(module, "_LAST_WORDS_S", 0.2)
    trackers = told(tmp_path / "r1", TrackersConfig(tensorboard=True), until=9)
    released.set()
    [problem] = trackers.problems
    assert "it does not keep up" in problem


def test_a_missing_package_is_refused_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else object())
    require_packages(TrackersConfig(tensorboard=True, mlflow="file:runs"))
    with pytest.raises(ConfigError, match=r"trackers\.wandb needs a package .* pip install 'milepost\[wandb\]'"):
        require_packages(TrackersConfig(wandb="offline"))


def test_a_password_in_a_uri_is_refused() -> None:
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD"):
        TrackersConfig(mlflow="http://me:secret@127.0.0.1:5000")
