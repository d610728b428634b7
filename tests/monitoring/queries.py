"""The PromQL of every panel, as Prometheus is to be asked for it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

from tests.monitoring.promtool import MONITORING

TABLES = sorted((MONITORING / "panels").glob("*.toml"))


def tables() -> list[dict[str, Any]]:
    """The dashboards' tables."""
    return [tomllib.loads(path.read_text()) for path in TABLES]


def queries(window: str = "1m") -> Iterator[tuple[str, str]]:
    """(dashboard and panel, PromQL) with all runs and environments chosen, and rates over `window`."""
    for table in tables():
        for row in table["row"]:
            for panel in row["panel"]:
                for query in panel["queries"]:
                    asked = query["expr"].replace("$__rate_interval", window).replace("$run", ".*")
                    yield f"{table['uid']}: {panel['title']}", asked.replace("$env", ".*")
