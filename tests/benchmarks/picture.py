"""Where the time of an update goes, as one SVG: a bar of phases for every way to train. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from milepost.cluster.runlog.figures import STYLE, svg_text
from tests.benchmarks.figures import Run, Section, phase_seconds
from tests.benchmarks.page import TITLES

COLOURS = {
    "rollout": "#94a3b8",
    "train": "#2563eb",
    "commit": "#9333ea",
    "publish": "#ea580c",
    "check": "#059669",
    "other": "#e2e8f0",
}


def picture(sections: Mapping[str, Section]) -> str:
    """Seconds of an update by phase, one panel per section of whole runs that was measured."""
    shown = {title: sections[name].runs for name, title in TITLES.items() if name in sections}
    with matplotlib.rc_context(STYLE):
        drawing = Figure(figsize=(4.3 * max(1, len(shown)), 3.0), layout="constrained")
        for number, (title, runs) in enumerate(shown.items(), start=1):
            axes = drawing.add_subplot(1, len(shown), number)
            _panel(axes, runs)
            axes.set_title(title, loc="left")
        marks = [Patch(color=colour, label=phase) for phase, colour in COLOURS.items()]
        drawing.legend(handles=marks, loc="outside lower center", ncols=len(marks))
        return svg_text(drawing)


def _panel(axes: Axes, ways: Mapping[str, Sequence[Run]]) -> None:
    names = list(ways)[::-1]
    for place, name in enumerate(names):
        left = 0.0
        for phase, seconds in phase_seconds([update for run in ways[name] for update in run.updates]).items():
            axes.barh(place, seconds, left=left, color=COLOURS[phase], height=0.7)
            left += seconds
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("seconds of an update")
    axes.grid(visible=False, axis="y")
