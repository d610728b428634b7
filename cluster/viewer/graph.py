"""A group's transition graph as places in a picture, with the way that one episode took through it.

The pages draw it as SVG. States stand where `milepost credit` puts them; an arrow is an action, as wide as it was often
taken, and shaded by the mean credit of the turns that took it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from milepost.cluster.viewer.curves import number
from milepost.cluster.viewer.tokens import signed
from milepost.cluster.workbench.graph_layout import shortened

_RADIUS: Final = 13.0
_MARGIN: Final = 58.0
_BEND: Final = 16.0
_HEAD: Final = 4.0
_LABEL_WIDTH: Final = 14

Place = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Arrow:
    """An action from a state to a state."""

    path: str
    head: str
    """Corners of its point, as an SVG polygon."""
    label: str
    at: Place
    told: str
    shade: str
    width: float
    steps: str
    """Turns, from 1, of the episode that is followed; empty where it did not take it."""


@dataclass(frozen=True, slots=True)
class Node:
    """A state, or one of the two ends."""

    at: Place
    label: str
    text: str
    kind: str
    is_on: bool
    """Whether the episode that is followed was there."""


@dataclass(frozen=True, slots=True)
class Picture:
    """All of it, in a frame from (0, 0)."""

    width: float
    height: float
    nodes: list[Node]
    arrows: list[Arrow]
    is_crowded: bool
    """Whether labels of actions would cover each other."""


def picture(graph: dict[str, Any], credit: Sequence[Sequence[float | None]], follow: int | None) -> Picture:
    """Lay out what `drawn` made of a group.

    Args:
        credit: of every turn of every trajectory of the graph, in its order.
        follow: place of the trajectory whose way is shown, if any.
    """
    low_x, low_y = (min(node[axis] for node in graph["nodes"]) for axis in "xy")
    places = [(node["x"] - low_x + _MARGIN, node["y"] - low_y + _MARGIN) for node in graph["nodes"]]
    taken: dict[int, list[float | None]] = {}
    for trajectory, values in zip(graph["trajectories"], credit, strict=True):
        for turn, value in zip(trajectory["turns"], values, strict=True):
            taken.setdefault(turn["edge"], []).append(value)
    followed = [] if follow is None else [turn["edge"] for turn in graph["trajectories"][follow]["turns"]]
    means = {edge: _mean(values) for edge, values in taken.items()}
    largest = max((abs(mean) for mean in means.values() if mean is not None), default=0.0)
    beside: Counter[tuple[int, int]] = Counter()
    arrows = []
    for row, edge in enumerate(graph["edges"]):
        ends = edge["from"], edge["to"]
        arrows.append(
            _arrow(
                edge["action"],
                [places[end] for end in ends],
                beside[ends],
                (len(taken[row]), means[row], signed(means[row], largest)),
                ", ".join(str(t) for t, other in enumerate(followed, start=1) if other == row),
            )
        )
        beside[ends] += 1
    seen = {end for row in followed for end in (graph["edges"][row]["from"], graph["edges"][row]["to"])}
    nodes = [
        Node(place, node["label"], node["text"], node["kind"], row in seen)
        for row, (node, place) in enumerate(zip(graph["nodes"], places, strict=True))
    ]
    width, height = (max(place[axis] for place in places) + _MARGIN for axis in (0, 1))
    return Picture(width, height, nodes, arrows, len(arrows) > 3 * len(nodes))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _arrow(action: str, ends: Sequence[Place], beside: int, taken: tuple[int, float | None, str], steps: str) -> Arrow:
    """`beside` counts the arrows that join the same states before it; `taken` is how often, mean credit, and shade."""
    times, mean, shade = taken
    start, end = ends
    path, tip, towards, at = _loop(start, beside) if start == end else _curve(start, end, beside)
    width = round(1.2 + 0.6 * math.log2(times), 1)
    credit = "no credit" if mean is None else f"credit {mean:+.3g} on the mean"
    return Arrow(
        path=path,
        head=_head(tip, towards, _HEAD + 1.5 * width),
        label=shortened(action, width=_LABEL_WIDTH),
        at=_rounded(at),
        told=f"{action}\ntaken {times}×, {credit}",
        shade=shade,
        width=width,
        steps=steps,
    )


def _curve(start: Place, end: Place, beside: int) -> tuple[str, Place, Place, Place]:
    """Path, tip, where the tip comes from, and where the label stands; bent, so that the way back is another one."""
    span = math.dist(start, end)
    across = (end[1] - start[1]) / span, (start[0] - end[0]) / span  # upwards where it goes to the right
    bend = _BEND * (1 + 1.6 * beside) + 0.06 * span
    control = tuple((a + b) / 2 + bend * n for a, b, n in zip(start, end, across, strict=True))
    first, tip = _towards(start, control, _RADIUS), _towards(end, control, _RADIUS + 2)
    at = tuple(0.25 * a + 0.5 * c + 0.25 * b for a, b, c in zip(start, end, control, strict=True))
    path = f"M{first[0]:.1f} {first[1]:.1f}Q{control[0]:.1f} {control[1]:.1f} {tip[0]:.1f} {tip[1]:.1f}"
    return path, tip, (control[0], control[1]), (at[0], at[1])


def _loop(place: Place, beside: int) -> tuple[str, Place, Place, Place]:
    x, y = place
    size = 30.0 + 16.0 * beside
    tip = x + 8, y - _RADIUS + 1
    top = y - size - 14
    path = f"M{x - 8:.1f} {tip[1]:.1f}C{x - size:.1f} {top:.1f} {x + size:.1f} {top:.1f} {tip[0]:.1f} {tip[1]:.1f}"
    return path, tip, (x + size, top), (x, y - 0.75 * size - 14)


def _towards(start: Place, end: Sequence[float], length: float) -> Place:
    span = math.dist(start, end) or 1.0
    return start[0] + (end[0] - start[0]) * length / span, start[1] + (end[1] - start[1]) * length / span


def _head(tip: Place, origin: Place, length: float) -> str:
    """A triangle at `tip` that points away from `origin`."""
    back = _towards(tip, origin, length)
    dx, dy = (tip[0] - back[0]) * 0.45, (tip[1] - back[1]) * 0.45
    corners = (tip, (back[0] - dy, back[1] + dx), (back[0] + dy, back[1] - dx))
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)


def _rounded(place: Place) -> Place:
    return round(place[0], 1), round(place[1], 1)


def strength(value: float | None) -> str:
    """A credit, reward or advantage with its sign, for people; empty for none."""
    return "" if value is None else f"{'+' if value > 0 else ''}{number(value)}"
