"""The curves of the report as inline SVG, drawn with matplotlib. No file is written and nothing is fetched."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from milepost.cluster.runlog.records import EvalRecord, IterationRecord, Number

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, sharp and searchable
    "svg.hashsalt": "milepost",  # equal data give equal bytes
    "font.family": ["sans-serif"],
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": "#475569",
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#475569",
    "ytick.color": "#475569",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
_COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea")
_STACK_COLOURS = (*_COLOURS, "#0891b2", "#ca8a04", "#db2777", "#4d7c0f", "#64748b", "#7c2d12", "#1e3a8a", "#84cc16")
_EVAL_COLOURS = {"train": "#0f172a", "heldout": "#ea580c", "ood": "#9333ea"}
_SIZE_INCHES = (6.0, 2.7)
_WIDE_INCHES = (12.4, 3.6)
_MARKERS_UP_TO = 60
_SMOOTHING_WINDOW = 5


@dataclass(frozen=True, slots=True)
class Line:
    """One field of the iteration records, or `field.key` of one that holds a table, and its name in the legend.

    `envs.NAME.field` is a field of what one environment did.
    """

    field: str
    label: str


def success(records: Sequence[IterationRecord], evals: Sequence[EvalRecord]) -> str:
    """Success in training (raw and as a running mean) and in every evaluation with its 95 % interval."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(_WIDE_INCHES)
        x, y = _points(records, "success")
        mean_label = f"training episodes, mean of {_SMOOTHING_WINDOW} iterations"
        axes.plot(x, y, color=_COLOURS[0], alpha=0.25, linewidth=1.2)
        axes.plot(x, _running_mean(y), color=_COLOURS[0], label=mean_label, marker=_marker(x), markersize=3)
        for split, colour in _EVAL_COLOURS.items():
            mine = [record for record in evals if record.split == split]
            below = [max(0.0, record.success - record.success_low) for record in mine]
            above = [max(0.0, record.success_high - record.success) for record in mine]
            if mine:
                axes.errorbar(
                    [record.iteration for record in mine],
                    [record.success for record in mine],
                    yerr=[below, above],
                    color=colour,
                    label=f"evaluation, {split}",
                    marker="o",
                    markersize=5,
                    capsize=3,
                    linewidth=1.0,
                    linestyle=":",
                )
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        return _svg(figure, axes)


def curves(records: Sequence[IterationRecord], lines: Sequence[Line], *, is_share: bool = False) -> str:
    """One curve per line over the iterations; a value that was not finite is a gap."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes()
        for line, colour in zip(lines, _STACK_COLOURS, strict=False):
            x, y = _points(records, line.field)
            axes.plot(x, y, color=colour, label=line.label, marker=_marker(x), markersize=3)
        if is_share:
            axes.set_ylim(-0.03, 1.03)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        return _svg(figure, axes)


def stacked(records: Sequence[IterationRecord], lines: Sequence[Line], *, unit: str, is_wide: bool = False) -> str:
    """The lines' values on top of each other, one bar per iteration; what was not measured counts as zero."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(_WIDE_INCHES if is_wide else _SIZE_INCHES)
        x = [record.iteration for record in records]
        bottom = [0.0] * len(x)
        for line, colour in zip(lines, _STACK_COLOURS, strict=False):
            heights = [_value(record, line.field) or 0.0 for record in records]
            axes.bar(x, heights, bottom=bottom, width=0.9, color=colour, label=line.label)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        axes.set_ylabel(unit)
        return _svg(figure, axes)


def _axes(size_inches: tuple[float, float] = _SIZE_INCHES) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size_inches, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _svg(figure: Figure, axes: Axes) -> str:
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper left", ncols=4)
    return svg_text(figure)


def svg_text(figure: Figure) -> str:
    """The figure as an `<svg>` element that refers to nothing outside of it."""
    target = io.StringIO()
    figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    text = target.getvalue()
    return text[text.index("<svg") :]  # the XML prolog and the DOCTYPE, which names a URL, stay out


def _points(records: Sequence[IterationRecord], field: str) -> tuple[list[int], list[float]]:
    values = [_value(record, field) for record in records]
    return [record.iteration for record in records], [float("nan") if value is None else value for value in values]


def _value(record: IterationRecord, field: str) -> Number:
    name, _, key = field.partition(".")
    if name == "envs":
        env, _, key = key.partition(".")
        part: Number = getattr(record.envs.get(env), key, None)
        return part
    value: Number = getattr(record, name).get(key) if key else getattr(record, name)
    return value


def _running_mean(values: Sequence[float]) -> list[float]:
    windows = [values[max(0, end - _SMOOTHING_WINDOW) : end] for end in range(1, len(values) + 1)]
    finite = [[value for value in window if value == value] for window in windows]
    return [sum(window) / len(window) if window else float("nan") for window in finite]


def _marker(x: Sequence[int]) -> str:
    return "o" if len(x) <= _MARKERS_UP_TO else ""
