"""`credit.html`: groups and the credit their turns got, as graphs to walk through, in one file that needs nothing else.

The page holds the numbers, the places of the states, and the script that draws them. Anchors and actions come from
outside: they travel as JSON data, are only ever set as text, and the page's policy lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from milepost.cluster.workbench.graph_layout import layered, short_labels
from milepost.learner.credit.assignment import Credit, CreditGroup, CreditTrajectory, Floats

_FOLDER = Path(__file__).parent
_LABEL_WIDTH = 16
_SUCCESS, _NO_SUCCESS = "success", "no success"
_OPTIONAL: Final = ("progress", "entropy", "history_gain", "value")


@dataclass(frozen=True, slots=True, eq=False)
class ScoredGroup:
    """A group and what every chosen strategy says of it."""

    group: CreditGroup
    credits: dict[str, Credit]
    """Strategy -> its credit, in the order in which they were asked for."""


def write_page(path: Path, scored: Sequence[ScoredGroup], *, title: str, num_groups: int) -> None:
    """Write the page atomically.

    Args:
        scored: the groups the page shows, at least one.
        title: what was scored, for people.
        num_groups: how many groups there are; the page says so if it does not show all.

    Raises:
        OSError: the file can't be written.
    """
    scratch = path.with_name(f".{path.name}-{os.getpid()}.tmp")
    scratch.write_text(page(scored, title=title, num_groups=num_groups), encoding="utf-8")
    os.replace(scratch, path)


def page(scored: Sequence[ScoredGroup], *, title: str, num_groups: int) -> str:
    """The page as text; see `write_page`."""
    data = {"num_groups": num_groups, "groups": [drawn(one) for one in scored]}
    # Inside a script element only "<" could end the data or begin a comment.
    text = msgspec.json.encode(data).decode().replace("<", "\\u003c")
    script = "".join((_FOLDER / name).read_text(encoding="utf-8") for name in ("credit_graph.js", "credit_page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "title": html.escape(title),
        "style": (_FOLDER / "credit_page.css").read_text(encoding="utf-8"),
        "digest": digest,
        "script": script,
        "data": text,
    }
    template = (_FOLDER / "credit_page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], template)


def drawn(scored: ScoredGroup) -> dict[str, Any]:
    """What a picture of one group needs, as JSON; nodes and edges are named by their rows.

    `nodes` have a label, the whole text, a kind (state, success, no success) and a place in pixels; `edges` the nodes
    they join, an action, and whether it was invalid; `trajectories` the edge of every turn; `strategies` the credits.
    """
    group = scored.group
    states = list(dict.fromkeys(turn.anchor for t in group.trajectories for turn in t.turns))
    ends = [end for end in (_SUCCESS, _NO_SUCCESS) if any(_end(t) == end for t in group.trajectories)]
    rows = {state: row for row, state in enumerate(states)}
    end_rows = {end: len(states) + row for row, end in enumerate(ends)}
    edges: dict[tuple[int, int, str, bool], int] = {}
    paths = []
    for trajectory in group.trajectories:
        path = []
        for t, turn in enumerate(trajectory.turns):
            is_last = t == len(trajectory.turns) - 1
            target = end_rows[_end(trajectory)] if is_last else rows[turn.next_anchor]
            path.append(edges.setdefault((rows[turn.anchor], target, turn.action, turn.invalid), len(edges)))
        paths.append(path)
    places = layered(
        len(states) + len(ends),
        [(source, target) for source, target, _, _ in edges],
        starts=sorted({rows[t.turns[0].anchor] for t in group.trajectories}),
        ends=list(end_rows.values()),
    )
    return {
        "id": group.task_id,
        "nodes": _nodes(states, ends, places),
        "edges": [{"from": s, "to": t, "action": a, "invalid": i} for s, t, a, i in edges],
        "trajectories": [_trajectory(t, path) for t, path in zip(group.trajectories, paths, strict=True)],
        "strategies": [_credit(name, credit, states) for name, credit in scored.credits.items()],
    }


def _nodes(states: list[str], ends: list[str], places: Floats) -> list[dict[str, Any]]:
    labels = [*short_labels(states, width=_LABEL_WIDTH), *ends]
    kinds = ["state"] * len(states) + ends
    return [
        {"label": label, "text": text, "kind": kind, "x": round(float(x), 1), "y": round(float(y), 1)}
        for label, text, kind, (x, y) in zip(labels, [*states, *ends], kinds, places, strict=True)
    ]


def _end(trajectory: CreditTrajectory) -> str:
    return _SUCCESS if trajectory.outcome == "success" else _NO_SUCCESS


def _trajectory(trajectory: CreditTrajectory, path: list[int]) -> dict[str, Any]:
    turns = []
    for turn, edge in zip(trajectory.turns, path, strict=True):
        known = {name: getattr(turn, name) for name in _OPTIONAL}
        measured = {name: _short(x) for name, x in known.items() if x is not None}
        turns.append({"edge": edge, "reward": _short(turn.reward), "tokens": turn.num_tokens, "measured": measured})
    return {
        "outcome": trajectory.outcome,
        "reward": _short(trajectory.reward),
        "end": trajectory.turns[-1].next_anchor,
        "turns": turns,
    }


def _credit(name: str, credit: Credit, states: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "values": [_short(credit.state_value[s]) if s in credit.state_value else None for s in states],
        "trajectory": _shorts(credit.traj_adv),
        "step": [_shorts(x) for x in credit.step_adv],
        "total": [_shorts(x) for x in credit.total],
        "coverage": [x.tolist() for x in credit.coverage],
        "diagnostics": {key: _short(x) for key, x in credit.diagnostics.items()},
    }


def _short(x: float) -> float:
    """Six significant digits: more than a person reads, half the page."""
    return float(f"{x:.6g}")


def _shorts(values: Floats) -> list[float]:
    return [_short(x) for x in np.asarray(values, dtype=np.float64).tolist()]
