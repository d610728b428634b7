"""The committed dashboards: made from their tables by Grafana's own types, and asking only for what is served."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

from milepost.cluster.runlog.metrics import Metrics
from tests.cluster.registry.served_metrics import registry_metrics
from tests.cluster.runlog.test_metrics import scrape
from tests.cluster.runlog.test_series import plenty, view
from tests.monitoring.promtool import MONITORING, RULES, needs_promtool
from tests.monitoring.queries import queries, tables

COMMITTED = sorted((MONITORING / "dashboards").glob("*.json"))
_GRID_WIDTH = 24


def test_the_committed_json_is_what_grafanas_own_types_make_of_the_tables() -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="a development dependency: make setup")
    from deploy.monitoring import dashboards

    assert [dashboards.path_of(table) for table in tables()] == COMMITTED
    for table in tables():
        assert dashboards.path_of(table).read_text() == dashboards.text(table), "run: make dashboards"


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_dashboard_has_ids_of_its_own_room_for_each_panel_and_a_datasource_to_choose(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["uid"] == path.stem
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "run", "env"]
    panels = board["panels"]
    assert not [number for number, count in Counter(panel["id"] for panel in panels).items() if count > 1]
    cells: Counter[tuple[int, int]] = Counter()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= _GRID_WIDTH
        cells.update(
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        )
    assert max(cells.values()) == 1, "panels overlap"
    for panel in panels:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["description"]
            assert [target["refId"] for target in panel["targets"]] == list("ABCDEFG"[: len(panel["targets"])])


@needs_promtool
def test_prometheus_can_read_every_query(tmp_path: Path) -> None:
    rules = [{"record": "milepost:panel", "expr": expr} for _, expr in queries()]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": f"g{n}", "rules": [rule]} for n, rule in enumerate(rules)]}))
    done = subprocess.run(
        ["promtool", "check", "rules", "--lint=none", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_and_rules_name_only_series_that_a_run_serves(tmp_path: Path) -> None:
    with Metrics(tmp_path / "metrics.jsonl") as metrics:
        plenty(metrics)
        metrics.see(view())
        served = {name.partition("{")[0] for name in scrape(metrics)}
    served |= set(re.findall(r"^(\w+)", registry_metrics(tmp_path).text(), re.M))
    asked = [expr for _, expr in queries()] + [path.read_text() for path in RULES]
    named = {name for text in asked for name in re.findall(r"\bmilepost_[a-z0-9_]+", text)}
    assert len(named) > 60
    assert named - served == set()


def test_every_rule_that_is_recorded_and_used_has_one_name() -> None:
    text = "".join(path.read_text() for path in RULES) + "".join(expr for _, expr in queries())
    recorded = re.findall(r"record: (\S+)", text)
    used = set(re.findall(r"milepost:[a-z0-9_]+(?::[a-z0-9_]+)?", re.sub(r"record: \S+", "", text)))
    assert used <= set(recorded)
    assert len(recorded) == len(set(recorded))
