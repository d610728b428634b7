"""Pictures of the dashboards without Grafana: their own queries, asked of a Prometheus, drawn by matplotlib.

    python -m deploy.monitoring.draw http://127.0.0.1:9090 START END FOLDER

START and END are seconds since 1970. A panel whose queries return nothing in that time says so.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deploy.monitoring.dashboards import TABLES

_COLUMNS = 4
_POINTS = 200
_LEGENDS = 6


def _series(url: str, query: dict[str, str], start: float, end: float) -> list[tuple[str, list[float], list[float]]]:
    """Legend, minutes since `start`, values of each series of one query."""
    step = max((end - start) / _POINTS, 1.0)
    window = f"{max(60, int(4 * step))}s"
    expr = query["expr"].replace("$__rate_interval", window).replace("$run", ".*").replace("$env", ".*")
    asked = urllib.parse.urlencode({"query": expr, "start": start, "end": end, "step": step})
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{asked}", timeout=60) as answer:
        found = json.load(answer)["data"]["result"]
    return [
        (
            re.sub(r"\{\{(\w+)\}\}", lambda label, of=each["metric"]: _shown(label[1], of), query["legend"]).strip(),
            [(at - start) / 60 for at, _ in each["values"]],
            [float(value) for _, value in each["values"]],
        )
        for each in found
    ]


def _shown(label: str, labels: dict[str, str]) -> str:
    """A label's value; the run is the same everywhere."""
    return "" if label == "run" else labels.get(label, "")


def _draw(axes: Axes, url: str, panel: dict[str, Any], start: float, end: float) -> None:
    lines = [line for query in panel["queries"] for line in _series(url, query, start, end)]
    for legend, minutes, values in lines:
        axes.plot(minutes, values, linewidth=1, label=legend or None)
    unit = {"percentunit": "share", "s": "seconds", "short": ""}.get(panel["unit"], panel["unit"])
    axes.set_title(f"{panel['title']}{f' ({unit})' if unit else ''}", fontsize=8, loc="left")
    axes.set_xlim(0, (end - start) / 60)
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.3)
    if not lines:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes, fontsize=8, color="grey")
    elif any(legend for legend, _, _ in lines):
        axes.legend(*(each[:_LEGENDS] for each in axes.get_legend_handles_labels()), fontsize=5, loc="best")


def picture(url: str, table: dict[str, Any], start: float, end: float) -> Figure:
    """One dashboard, row by row."""
    rows = [
        (row["title"] if not first else "", row["panel"][first : first + _COLUMNS])
        for row in table["row"]
        for first in range(0, len(row["panel"]), _COLUMNS)
    ]
    figure = Figure(figsize=(16, 2.6 * len(rows)), layout="constrained")
    figure.suptitle(f"{table['title']}; minutes from left to right", fontsize=11)
    for band, (title, panels) in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        band.suptitle(title, fontsize=9, x=0.01, ha="left", weight="bold")
        for axes, panel in zip(band.subplots(1, _COLUMNS), panels, strict=False):
            _draw(axes, url, panel, start, end)
        for axes in band.axes[len(panels) :]:
            axes.axis("off")
    return figure


if __name__ == "__main__":
    prometheus, begin, finish, folder = sys.argv[1:]
    for path in TABLES:
        made = picture(prometheus, tomllib.loads(path.read_text()), float(begin), float(finish))
        made.savefig(Path(folder) / f"dashboard_{path.stem}.png", dpi=80)
