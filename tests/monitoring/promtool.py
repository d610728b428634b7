"""Prometheus's own tools on our rules: what fires over made-up or recorded series."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
RULES = sorted((MONITORING / "rules").glob("*.yml"))
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool: 'make prometheus' brings it by apt"
)
PLACE = 'job="milepost",run="r",instance="driver"'


def alerts() -> dict[str, dict[str, Any]]:
    """The alert rules by name."""
    groups = yaml.safe_load((MONITORING / "rules" / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def named(series: str) -> str:
    """`name{labels}` of the run "r"."""
    name, _, labels = series.partition("{")
    return f"{name}{{{labels.removesuffix('}')}{',' if labels else ''}{PLACE}}}"


def require_firing(tmp_path: Path, series: Mapping[str, str], firing: Mapping[int, set[str]]) -> None:
    """`series` (name -> values, one a minute, in promtool's notation) fire just these alerts at these minutes."""
    checks = [
        {
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(names)],
        }
        for minute, names in firing.items()
    ]
    test = {
        "rule_files": [str(path) for path in RULES],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": named(name), "values": values} for name, values in series.items()],
                "promql_expr_test": checks,
            }
        ],
    }
    path = tmp_path / "rules_test.yml"
    path.write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
