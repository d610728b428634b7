"""A real experiment from outside: one cell is stopped and finishes on --resume, one fails, and a table says so."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

from milepost.cluster.runlog.records import iterations, read_records
from milepost.cluster.runlog.runs import list_runs
from tests.system.driving import START_S, Driver, write_config

pytestmark = [pytest.mark.services, pytest.mark.sweep]  # two minutes; its parts have tests of their own
Start = Callable[..., Driver]


@pytest.mark.timeout(900)
def test_an_experiment_stops_resumes_survives_a_failure_and_writes_its_table(
    tmp_path: Path, tiny_policy: Path, start: Start
) -> None:
    run = {"iterations": 1, "checkpoint_every": 1, "eval_episodes": 4, "groups_per_iteration": 2}
    base = write_config(tmp_path, tiny_policy, run=run)
    path = tmp_path / "experiment.toml"
    values = {
        "name": "trial",
        "seeds": [0],
        "measures": {"splits": ["heldout"], "window": 1},
        "configs": [{"name": "coin", "path": str(base)}],
        "arms": [
            {"name": "steppo", "overrides": ["credit.strategy=steppo"]},
            {"name": "broken", "overrides": ["env.path=tests.no_such_module:Env"]},
        ],
    }
    path.write_text(tomli_w.dumps(values))
    arguments = ("experiment", path, "--runs-dir", tmp_path / "runs")

    first = start(*arguments)
    first.wait_for("the first cell's services", lambda: bool(first.find("redis-server")), START_S)
    os.kill(first.process.pid, signal.SIGINT)
    assert first.end(deadline_s=90) == 3, first.said()
    assert first.left(deadline_s=30) == []
    [folder] = (tmp_path / "runs").glob("*-trial")
    assert json.loads((folder / "results.json").read_text())["rows"][0]["finished"] == 0

    second = start(*arguments, "--resume")
    assert second.end(START_S) == 2, second.said()  # the code of the cell that failed
    said = second.out.read_text()
    assert "[2/2] coin-broken-0: FAILED with exit code 2" in said
    assert "no_such_module" in said.splitlines()[-1]
    assert "[1/2] coin-steppo-0: heldout" in said
    [cell] = [one for one in json.loads((folder / "results.json").read_text())["cells"] if one["arm"] == "steppo"]
    assert cell["status"] == "finished"
    assert cell["run"] == list_runs(folder)[-1]
    assert cell["after"]["heldout"]["episodes"] == 4
    [trained] = iterations(read_records(folder / cell["run"] / "metrics.jsonl"))
    assert trained.value_loss is not None  # its critic was made and trained
    assert trained.value_loss > 0
    table = (folder / "table.md").read_text()
    assert "| steppo | " in table
    assert "* coin broken seed 0: failed (" in table
    assert (folder / "curves.svg").read_text().startswith("<svg")

    third = start(*arguments, "--resume")
    assert third.end(60) == 2
    assert "[1/2] coin-steppo-0: finished before" in third.out.read_text()
