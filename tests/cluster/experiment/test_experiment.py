"""Plans, tables and what a folder says about the runs in it; tests/system runs a real experiment."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomli_w

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.experiment import figure as experiment_figure
from milepost.cluster.experiment import folder as experiment_folder
from milepost.cluster.experiment import plan as experiment_plan
from milepost.cluster.experiment import runner as experiment
from milepost.cluster.experiment import table as experiment_table
from milepost.cluster.experiment.plan import Cell, Measures
from milepost.cluster.experiment.table import CellResult, Evaluation, Point, Spread
from milepost.cluster.runlog.runs import RunFolder, Status
from milepost.cluster.settings import config as configs
from tests.cluster.runlog.example_records import eval_record, iteration_record
from tests.system.driving import ROOT

BASE = """
[run]
iterations = 6
groups_per_iteration = 4
group_size = 8
eval_episodes = 16
[env]
heldout_size = 16
"""
HELDOUT = Measures(splits=["heldout"], reach=0.5, window=2)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes an experiment with one config and two arms; keyword arguments replace its keys."""

    def write_file(**changes: Any) -> Path:
        (tmp_path / "base.toml").write_text(BASE)
        values: dict[str, Any] = {
            "name": "trial",
            "seeds": [0, 1],
            "configs": [{"name": "lake", "path": str(tmp_path / "base.toml"), "overrides": ["learner.lr=1e-3"]}],
            "arms": [
                {"name": "starpo", "overrides": ["credit.strategy=starpo"]},
                {"name": "crbc", "overrides": ["credit.strategy=crbc", "credit.beta=0.5"]},
            ],
        }
        path = tmp_path / "experiment.toml"
        path.write_text(tomli_w.dumps({key: value for key, value in (values | changes).items() if value is not None}))
        return path

    return write_file


def cells_of(path: Path, folder: Path) -> list[Cell]:
    return experiment_plan.plan(experiment_plan.load(path), folder)


def test_the_plan_is_every_combination_with_all_arms_of_a_seed_together(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    cells = cells_of(write(), tmp_path / "out")
    assert [cell.name for cell in cells] == ["lake-starpo-0", "lake-crbc-0", "lake-starpo-1", "lake-crbc-1"]
    last = cells[-1].run
    assert (last.run.name, last.run.seed, last.run.runs_dir) == ("lake-crbc-1", 1, str(tmp_path / "out"))
    assert (last.learner.lr, last.credit.strategy) == (1e-3, "crbc")
    assert last.credit.model_dump()["beta"] == 0.5
    assert cells[-1].episodes == 6 * 4 * 8


def test_a_dry_run_lists_the_cells_and_starts_nothing(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write()
    monkeypatch.chdir(tmp_path)
    *cells, total = experiment.describe(path)
    assert [line.split() for line in cells][1] == ["2", "lake-crbc-0", "192", "episodes"]
    assert total == "4 runs = 1 configs x 2 arms x 2 seeds"
    assert {path.name for path in tmp_path.iterdir()} == {"base.toml", "experiment.toml"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"arms": [{"name": "a", "overrides": ["credit.strategy=gippo"]}]}, r"cell lake-a-0: .*did you mean gigpo"),
        ({"arms": [{"name": "a", "overrides": ["learner.lrr=1"]}]}, r"cell lake-a-0: .*learner\.lr"),
        ({"arms": [{"name": "a", "overrides": ["run.seed=5"]}]}, r"run\.seed is set by the experiment"),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, "arms: a stands there twice"),
        ({"arms": [{"name": "a"}, {"name": "b", "overrides": ["run.group_size=4"]}]}, "run.group_size is 4 in cell"),
        ({"arms": [{"name": "a", "overrides": ["run.eval_episodes=0"]}]}, "eval_episodes = 0"),
        ({"measures": {"splits": ["ood"]}}, "env.ood_size = 0"),
        ({"measures": {"window": 7}}, "measures.window = 7"),
        ({"seeds": [0, 0]}, "seeds: 0 stands there twice"),
        ({"seeds": []}, "seeds: "),
        ({"arms": None}, "arms: "),
        ({"arm": [{"name": "a"}]}, "arm: "),
        ({"configs": [{"name": "lake", "path": "nowhere.toml"}]}, r"nowhere\.toml: No such file"),
        ({"configs": [{"name": "Lake", "path": "nowhere.toml"}]}, r"configs\.0\.name"),
    ],
)
def test_what_is_wrong_is_named_before_anything_starts(
    write: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    path = write(**changes)
    with pytest.raises(ConfigError, match=complaint):
        experiment.conduct(path, tmp_path / "runs", resume=False, say=print)
    assert not (tmp_path / "runs").exists()


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("name = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        experiment_plan.load(tmp_path / "x.toml")
    with pytest.raises(ConfigError, match="No such file"):
        experiment_plan.load(tmp_path / "y.toml")


def test_the_shipped_experiment_resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cells = cells_of(Path("deploy/experiments/credit.toml"), Path("runs/x"))
    assert len(cells) == 30
    assert {cell.run.credit.strategy for cell in cells} == {"starpo", "gigpo", "graphgpo", "crbc", "steppo"}


def test_the_running_mean_is_over_whole_windows_and_priced_in_episodes() -> None:
    records = [
        iteration_record(number, success=success, episodes=60 + number)
        for number, success in enumerate([0.1, 0.3, 0.8, 0.2], start=1)
    ]
    assert experiment_table.running_success(records, 2) == [
        Point(episodes=61 + 62, success=pytest.approx(0.2)),
        Point(episodes=61 + 62 + 63, success=pytest.approx(0.55)),
        Point(episodes=61 + 62 + 63 + 64, success=pytest.approx(0.5)),
    ]
    unmeasured = [records[0], msgspec.structs.replace(records[1], success=None), *records[2:]]
    assert [point.episodes for point in experiment_table.running_success(unmeasured, 2)] == [250]
    assert experiment_table.running_success(records[:1], 2) == []


def test_spread_is_mean_and_sample_standard_deviation() -> None:
    assert experiment_table.spread([]) is None
    assert experiment_table.spread([0.4]) == Spread(mean=0.4, sd=None, count=1)
    assert experiment_table.spread([1.0, 2.0, 6.0]) == Spread(mean=3.0, sd=pytest.approx(math.sqrt(7)), count=3)


def metrics_of(folder: Path, successes: list[float], before: float, after: float) -> Path:
    """A metrics.jsonl as a run of six iterations writes it."""
    records = [
        eval_record(0, "heldout", before),
        *(iteration_record(number, success=value, episodes=32) for number, value in enumerate(successes, start=1)),
        eval_record(6, "train", 0.99),
        eval_record(6, "heldout", after),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metrics.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in records))
    return path


def test_a_cell_is_measured_at_its_end_and_by_when_it_reached(write: Callable[..., Path], tmp_path: Path) -> None:
    cell = cells_of(write(), tmp_path)[0]
    path = metrics_of(tmp_path, [0.2, 0.4, 0.5, 0.5, 0.1, 0.9], before=0.1, after=0.7)
    found = experiment_table.measured(cell, path, "r", HELDOUT)
    assert found.after == {"heldout": Evaluation(success=0.7, low=pytest.approx(0.65), high=0.75, episodes=200)}
    assert found.before["heldout"].success == 0.1
    assert found.episodes_to_reach == 4 * 32  # (0.5 + 0.5) / 2
    never = experiment_table.measured(cell, metrics_of(tmp_path, [0.4] * 6, 0.1, 0.4), "r", HELDOUT)
    assert never.episodes_to_reach is None


def result(arm: str, seed: int, after: float | None, reached: int | None = None, **changes: Any) -> CellResult:
    def evaluated(success: float) -> dict[Any, Evaluation]:
        return {"heldout": Evaluation(success=success, low=success - 0.1, high=success + 0.1, episodes=128)}

    values: dict[str, Any] = {"status": "failed" if after is None else "finished", "planned_episodes": 1536}
    if after is not None:
        values |= {"before": evaluated(0.125), "after": evaluated(after), "episodes_to_reach": reached}
        values["curve"] = [Point(episodes=100, success=0.2), Point(episodes=200, success=after)]
    return CellResult(config="lake", arm=arm, seed=seed, **(values | changes))


def test_the_table_has_mean_spread_price_and_what_is_missing() -> None:
    results = [
        result("starpo", 0, 0.3),
        result("crbc", 0, 0.7, 256),
        result("hgpo", 0, 0.5, 640),
        result("pbrs", 0, None, reason="exit code 5"),
        result("starpo", 1, 0.4),
        result("crbc", 1, 0.9, 512),
        result("hgpo", 1, 0.5),
        result("pbrs", 1, None, status="waiting"),
    ]
    page = experiment_table.markdown("trial", results, HELDOUT)
    assert "over seeds 0, 1, at equal training episodes" in page
    assert "Budget: 1,536 training episodes per run. Before training: heldout 12.5 %." in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert table == [
        "| arm | success, heldout | episodes to 50% | runs |",
        "|---|---|---|---|",
        "| starpo | 35.0 ± 7.1 % | not reached | 2 of 2 |",  # 0.05 * sqrt(2)
        "| crbc | 80.0 ± 14.1 % | 384 ± 181 | 2 of 2 |",  # 128 * sqrt(2)
        "| hgpo | 50.0 ± 0.0 % | 640 (1 of 2 seeds) | 2 of 2 |",
        "| pbrs | not measured | not measured | 0 of 2 |",
    ]
    assert "**2 of 8 runs are missing:**" in page
    assert "* lake pbrs seed 0: failed (exit code 5)" in page


def test_the_figure_draws_a_line_per_arm_and_a_panel_per_config() -> None:
    results = [result("starpo", seed, 0.3 + 0.1 * seed) for seed in (0, 1)]
    x, mean, low, high = experiment_figure.band([one.curve for one in results])
    assert (x, mean) == ([100, 200], [pytest.approx(0.2), pytest.approx(0.35)])
    assert [h - m for h, m in zip(high, mean, strict=True)] == pytest.approx([0.0, 0.05 * math.sqrt(2)])
    assert low[1] == pytest.approx(0.35 - 0.05 * math.sqrt(2))
    drawn = experiment_figure.figure([*results, result("crbc", 0, None)], HELDOUT)
    assert drawn.startswith("<svg")
    assert all(word in drawn for word in ("lake", "starpo", "crbc", "training episodes"))
    assert experiment_figure.figure(results, HELDOUT) == experiment_figure.figure(results, HELDOUT)


def test_the_time_left_goes_by_config() -> None:
    took = [("lake", 100.0), ("lake", 140.0), ("rooms", 200.0)]
    assert experiment.seconds_left(["lake", "rooms", "rooms"], took) == 120 + 200 + 200
    assert experiment.seconds_left(["other"], took) == pytest.approx(440 / 3)
    assert experiment.seconds_left(["lake"], []) is None
    assert experiment.seconds_left([], took) is None


@pytest.fixture
def begun(write: Callable[..., Path], tmp_path: Path) -> tuple[Path, list[Cell], Callable[..., RunFolder]]:
    """An experiment's folder, its cells, and a function that leaves a run of a cell behind."""
    folder = tmp_path / "runs" / "20260101-000000-trial"
    cells = cells_of(write(), folder)
    experiment_folder.make(folder)

    def leave(cell: Cell, stamp: str, phase: str, iteration: int) -> RunFolder:
        run = RunFolder(folder / f"{stamp}-{cell.name}")
        run.path.mkdir()
        configs.dump(cell.run, run.resolved)
        run.write_status(Status(pid=1, phase=phase, iteration=iteration, iterations=cell.run.run.iterations))
        return run

    return folder, cells, leave


def test_a_cell_has_finished_when_its_newest_run_has(
    begun: tuple[Path, list[Cell], Callable[..., RunFolder]],
) -> None:
    folder, cells, leave = begun
    assert experiment_folder.newest_run(folder, cells[0]) is None
    leave(cells[0], "20260101-000001", "ended: stopped", 3)
    assert not experiment_folder.is_finished(folder, cells[0])
    newest = leave(cells[0], "20260101-000002", "finished", 6)
    assert experiment_folder.newest_run(folder, cells[0]) == newest
    assert experiment_folder.is_finished(folder, cells[0])
    assert not experiment_folder.is_finished(folder, cells[1])


def test_a_cell_without_a_checkpoint_begins_anew(
    begun: tuple[Path, list[Cell], Callable[..., RunFolder]],
) -> None:
    folder, cells, leave = begun
    leave(cells[0], "20260101-000001", "training", 2)
    assert experiment_folder.arguments(folder, cells[0]) == [str(folder / "cells" / "lake-starpo-0.toml")]
    assert configs.load(folder / "cells" / "lake-starpo-0.toml") == cells[0].run


def test_a_changed_experiment_is_not_resumed(
    begun: tuple[Path, list[Cell], Callable[..., RunFolder]], write: Callable[..., Path]
) -> None:
    folder, cells, leave = begun
    leave(cells[1], "20260101-000001", "finished", 6)
    changed = write(arms=[{"name": "crbc", "overrides": ["credit.strategy=crbc", "credit.beta=0.9"]}])
    with pytest.raises(ConfigError, match=r"lake-crbc-0 began otherwise: credit\.beta was 0\.5 and is now 0\.9"):
        experiment.conduct(changed, folder.parent, resume=True, say=print)
    longer = write(configs=[{"name": "lake", "path": str(folder.parents[1] / "base.toml"),
                             "overrides": ["learner.lr=1e-3", "run.iterations=9"]}])  # fmt: skip
    with pytest.raises(ConfigError, match=r"began with run\.iterations = 6, now it is 9"):
        experiment.conduct(longer, folder.parent, resume=True, say=print)


def test_resuming_what_never_began_is_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no experiment 'trial'"):
        experiment.conduct(write(), tmp_path / "runs", resume=True, say=print)
