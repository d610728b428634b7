"""The learning curves of an experiment as one SVG, drawn with matplotlib. Nothing is fetched."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from milepost.cluster.experiment.plan import Measures
from milepost.cluster.experiment.table import CellResult, Point, spread
from milepost.cluster.runlog.figures import STYLE, svg_text

_COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#0f172a", "#db2777", "#65a30d", "#0891b2")
_STYLES = ("-", "--", ":")
_INCHES = (4.6, 3.2)


def figure(results: Sequence[CellResult], measures: Measures) -> str:
    """Success in training over episodes, one panel per config and one line per arm: mean over seeds, band of one sd."""
    configs = list(dict.fromkeys(result.config for result in results))
    arms = list(dict.fromkeys(result.arm for result in results))
    with matplotlib.rc_context(STYLE):
        drawing = Figure(figsize=(_INCHES[0] * len(configs), _INCHES[1]), layout="constrained")
        panels = drawing.subplots(1, len(configs), squeeze=False, sharey=True)[0]
        for config, axes in zip(configs, panels, strict=True):
            _panel(axes, [result for result in results if result.config == config], arms, measures)
            axes.set_title(config, loc="left")
        panels[0].set_ylabel(f"success in training\n(mean of {measures.window} iterations)")
        handles, labels = panels[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower center", ncols=min(len(arms), 6))
        return svg_text(drawing)


def _panel(axes: Axes, results: Sequence[CellResult], arms: Sequence[str], measures: Measures) -> None:
    for number, arm in enumerate(arms):
        curves = [result.curve for result in results if result.arm == arm and result.curve]
        x, mean, low, high = band(curves)
        colour, style = _COLOURS[number % len(_COLOURS)], _STYLES[number // len(_COLOURS) % len(_STYLES)]
        axes.plot(x, mean, color=colour, linestyle=style, label=arm, marker="o", markersize=2.5)
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.axhline(measures.reach, color="#94a3b8", linewidth=0.8)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("training episodes")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def band(curves: Sequence[Sequence[Point]]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Episodes, mean success, and mean -+ one sample standard deviation at every point that all curves have.

    Curves of one budget have their points at the same iterations; where episodes failed, x is the mean of theirs.
    """
    columns = list(zip(*curves, strict=False))
    x = [math.fsum(point.episodes for point in column) / len(column) for column in columns]
    spreads = [spread([point.success for point in column]) for column in columns]
    found = [(one.mean, one.sd or 0.0) for one in spreads if one is not None]
    return x, [m for m, _ in found], [m - sd for m, sd in found], [m + sd for m, sd in found]
