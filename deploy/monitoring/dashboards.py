"""Make Grafana's JSON of the tables in `panels/`, with Grafana's own builders: `make dashboards`.

Conventions are those of vLLM's and Ray's own dashboards, whose rows can stand beside ours: time series, legends from
labels, one variable per label.

The library's types are those of Grafana's schema: a name or a unit of the wrong type does not get this far. That a
query returns something is not its business; `tests/monitoring` asks a real Prometheus.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, prometheus, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, TooltipDisplayMode, VisibilityMode
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DataSourceRef,
    VariableOption,
    VariableRefresh,
)

FOLDER = Path(__file__).parent
TABLES = sorted((FOLDER / "panels").glob("*.toml"))
_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_ALL = VariableOption(selected=True, text="All", value="$__all")
_WIDTH, _HEIGHT = 6, 8


def _variable(name: str, label: str, query: str) -> build.QueryVariable:
    return (
        build.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(_SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(_ALL)
    )


def _panel(table: dict[str, Any]) -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    made = (
        timeseries.Panel()
        .title(table["title"])
        .description(table["about"])
        .datasource(_SOURCE)
        .unit(table["unit"])
        .span(_WIDTH)
        .height(_HEIGHT)
        .show_points(VisibilityMode.NEVER)
        .legend(legend.show_legend(True))
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    for name, query in zip("ABCDEFG", table["queries"], strict=False):
        made.with_target(
            prometheus.Dataquery().expr(query["expr"]).legend_format(query["legend"]).ref_id(name).datasource(_SOURCE)
        )
    return made


def dashboard(table: dict[str, Any]) -> Dashboard:
    """One dashboard as Grafana's own type."""
    made = (
        build.Dashboard(table["title"])
        .uid(table["uid"])
        .tags(["milepost"])
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("10s")
        .with_variable(build.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("run", "Run", "label_values(milepost_iteration, run)"))
        .with_variable(_variable("env", "Environment", 'label_values(milepost_env_episodes_total{run=~"$run"}, env)'))
        .link(build.DashboardLink("Milepost").type("dashboards").tags(["milepost"]).keep_time(True).include_vars(True))
    )
    for row in table["row"]:
        made.with_row(build.Row(row["title"]))
        for panel in row["panel"]:
            made.with_panel(_panel(panel))
    dashboard = made.build()
    for number, panel in enumerate(dashboard.panels or [], start=1):
        panel.id_val = number
    return dashboard


def path_of(table: dict[str, Any]) -> Path:
    """Where the JSON of a table lies."""
    return FOLDER / "dashboards" / f"{table['uid']}.json"


def text(table: dict[str, Any]) -> str:
    """The file's content."""
    made = json.loads(json.dumps(dashboard(table), cls=JSONEncoder))
    made.pop("style")  # this and the variables' are defaults of the builders that @grafana/schema does not know
    for variable in made["templating"]["list"]:
        for name in ("auto", "auto_count", "auto_min", "id"):
            variable.pop(name)
    return json.dumps(made, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    for table in (tomllib.loads(path.read_text()) for path in TABLES):
        path_of(table).write_text(text(table))
