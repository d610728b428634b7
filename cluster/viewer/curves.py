"""A run's numbers over its iterations as places in a picture; each point leads to the iteration that it is of.

The pages draw them as SVG. A long run shows the lowest and the highest point of each stretch, so no spike is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from milepost.cluster.runlog.records import EvalRecord, IterationRecord, Record, evals, iterations

_LEFT, _RIGHT, _TOP, _BOTTOM = 54.0, 450.0, 10.0, 148.0
"""Where the values lie in the picture, which `charts.html` makes 460 by 170."""
_MOST_STRETCHES = 80
"""Of two points each: finer than a person can point at."""
_WANTED_TICKS = 4
_FIELDS: Final = (
    ("success", "Success", "Share of episodes that reach the goal; dashed: held-out tasks, evaluated"),
    ("reward_mean", "Reward", "Mean return of an episode"),
    ("reward_std_within", "Spread in groups", "Standard deviation of returns inside a group: what there is to compare"),
    ("zero_variance_share", "Groups of equal returns", "They teach nothing, unless step credit does"),
    ("invalid_share", "Invalid turns", "Share of turns without a valid action"),
    ("turns_mean", "Turns", "Of an episode, on the mean"),
    ("entropy", "Entropy", "Nats per token"),
    ("kl", "KL of the update", "Nats per token"),
    ("grad_norm", "Gradient norm", "Before clipping"),
    ("staleness_mean", "Staleness", "Policy versions between sampling and training"),
    ("episodes_failed", "Failed episodes", "An iteration's"),
    ("tokens_per_s", "Tokens per second", "Sampled"),
)  # fmt: skip
"""Field of the iterations' records, and the title and note of its curve."""


@dataclass(frozen=True, slots=True)
class Point:
    """One measured value."""

    x: float
    y: float
    text: str
    run: str
    iteration: int
    split: str = ""
    """Of an evaluation."""
    version: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """The values of one run."""

    tone: int
    """Place of the run, which decides its colour."""
    path: str
    """`d` of an SVG path; a value that was not finite is a gap."""
    points: list[Point]
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """One number of one or several runs."""

    field: str
    title: str
    note: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class _Value:
    iteration: int
    value: float
    text: str = ""
    """Of an evaluation; of an iteration it is made for what is drawn."""
    split: str = ""
    version: int = 0


_Series = tuple[str, int, bool, list[_Value]]
"""Run, its tone, whether it is dashed, and the values."""


def charts(records: Mapping[str, Sequence[Record]]) -> list[Chart]:
    """A chart for each number that was anything but 0 in some of the runs; `records` are those of a run, by its id."""
    numbers = [record.iteration for mine in records.values() for record in mine]
    span = min(numbers, default=0), max(numbers, default=0)
    found = (_chart((field, title, note), list(_series(field, records)), span) for field, title, note in _FIELDS)
    return [chart for chart in found if chart is not None]


def _series(field: str, records: Mapping[str, Sequence[Record]]) -> Iterator[_Series]:
    for tone, (run, mine) in enumerate(records.items()):
        yield run, tone, False, [value for record in iterations(list(mine)) if (value := _value(record, field))]
        if field == "success":
            yield run, tone, True, [_evaluated(record) for record in evals(list(mine), "heldout")]


def _value(record: IterationRecord, field: str) -> _Value | None:
    value: float | None = getattr(record, field)
    if value is None or not math.isfinite(value):
        return None
    return _Value(record.iteration, value)


def _told(value: _Value) -> str:
    return f"iteration {value.iteration}: {number(value.value)}"


def _evaluated(record: EvalRecord) -> _Value:
    text = (
        f"held out after iteration {record.iteration}: {record.success:.1%} "
        f"[{record.success_low:.1%}, {record.success_high:.1%}] of {record.episodes}"
    )
    return _Value(record.iteration, record.success, text, record.split, record.policy_version)


def _chart(words: tuple[str, str, str], series: Sequence[_Series], span: tuple[int, int]) -> Chart | None:
    """The chart of a field with its title and note, over the iterations that all charts show."""
    field, title, note = words
    values = [value for *_, mine in series for value in mine]
    if not any(value.value for value in values):
        return None  # never measured, or nothing ever happened
    first, last = span
    low, high = min(v.value for v in values), max(v.value for v in values)
    if field in ("success", "zero_variance_share", "invalid_share"):
        low, high = 0.0, max(1.0, high) if field == "success" else high
    x_ticks, y_ticks = ticks(first, last, whole=True), ticks(low, high, whole=False)
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])

    def x(iteration: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * (iteration - first) / max(last - first, 1), 1)

    def y(value: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * (value - low) / ((high - low) or 1.0), 1)

    lines = []
    for run, tone, is_dashed, mine in series:
        kept = thinned([v.value for v in mine])
        points = [
            Point(x(v.iteration), y(v.value), f"{run}, {v.text or _told(v)}", run, v.iteration, v.split, v.version)
            for v in (mine[place] for place in kept)
        ]
        lines.append(Line(tone, _path(points, is_thinned=len(kept) < len(mine) or is_dashed), points, is_dashed))
    return Chart(field, title, note, lines, [(x(t), f"{t:g}") for t in x_ticks], [(y(t), number(t)) for t in y_ticks])


def _path(points: Sequence[Point], *, is_thinned: bool) -> str:
    """Points are joined, except over an iteration that has no value."""
    steps, before = [], None
    for point in points:
        is_next = before is not None and (is_thinned or point.iteration == before + 1)
        steps.append(f"{'L' if is_next else 'M'}{point.x:g} {point.y:g}")
        before = point.iteration
    return "".join(steps)


def thinned(values: Sequence[float]) -> list[int]:
    """Places of the values that are drawn: all of a few, else the lowest and the highest of each stretch.

    >>> thinned([3.0, 1.0, 2.0])
    [0, 1, 2]
    >>> spike = [0.0] * 1000; spike[700] = 9.0
    >>> 700 in thinned(spike), len(thinned(spike)) <= 160
    (True, True)
    """
    if len(values) <= 2 * _MOST_STRETCHES:
        return list(range(len(values)))
    kept: set[int] = set()
    for stretch in range(_MOST_STRETCHES):
        places = range(stretch * len(values) // _MOST_STRETCHES, (stretch + 1) * len(values) // _MOST_STRETCHES)
        kept |= {min(places, key=values.__getitem__), max(places, key=values.__getitem__)}
    return sorted(kept)


def ticks(low: float, high: float, *, whole: bool) -> list[float]:
    """Round numbers from `low` to `high` and a little beyond, about four apart; only whole ones of iterations.

    >>> ticks(0.0, 1.0, whole=False)
    [0.0, 0.5, 1.0]
    >>> ticks(1, 40, whole=True)
    [10.0, 20.0, 30.0, 40.0]
    """
    span = (high - low) or abs(high) or 1.0
    rough = span / _WANTED_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    if whole:
        step = max(1.0, step)
        return [t * step for t in range(math.ceil(low / step), math.floor(high / step) + 1)] or [float(low)]
    return [round(t * step, 12) for t in range(math.floor(low / step), math.ceil(high / step) + 1)]


def number(value: float) -> str:
    """Three significant digits, and no more of a large number than its size.

    >>> number(0.12345), number(1234.5), number(-2.0), number(0.00001)
    ('0.123', '1,234', '-2', '1e-05')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
