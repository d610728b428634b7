"""The tables of `milepost credit`: a summary per strategy, how far strategies agree, and one group turn by turn.

Anchors and actions come from outside and may be of any length: they are shown on one line, without markup and control
characters. A table that is too wide for the terminal is split by strategies; elsewhere lines are as long as they must.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from milepost.cluster.workbench.credit_page import ScoredGroup
from milepost.cluster.workbench.graph_layout import short_labels, shortened
from milepost.learner.credit.agreement import AnchorFacts, anchor_facts, rank_correlation, sign_flip_share
from milepost.learner.credit.assignment import CreditTurn, Floats

_PLAIN_WIDTH = 10_000
_STRATEGY_WIDTH = 14
_ANCHOR_WIDTH = 24
_ACTION_WIDTH = 20
_STEP_COLUMNS_WIDTH = 40
"""Trajectory, turn, reward, and what separates the columns."""


class _Console(Console):
    """Leaves it to the caller what becomes of a program whose reader has seen enough; rich would end it with code 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Summary:
    """Adds up what the tables say of all groups; keeps one number per turn and strategy."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.num_groups = 0
        self.num_trajectories = 0
        self.num_successes = 0
        self.anchors = AnchorFacts()
        self._totals: dict[str, list[Floats]] = {name: [] for name in names}
        self._covered = dict.fromkeys(names, 0)
        self._step_size = dict.fromkeys(names, 0.0)

    def add(self, scored: ScoredGroup) -> None:
        """Take in one group."""
        trajectories = scored.group.trajectories
        self.num_groups += 1
        self.num_trajectories += len(trajectories)
        self.num_successes += sum(t.outcome == "success" for t in trajectories)
        self.anchors += anchor_facts(scored.group)
        for name, credit in scored.credits.items():
            self._totals[name].append(np.concatenate(credit.total))
            self._covered[name] += sum(int(x.sum()) for x in credit.coverage)
            self._step_size[name] += float(sum(np.abs(x).sum() for x in credit.step_adv))

    def totals(self, name: str) -> Floats:
        """`[N]` totals of all turns."""
        return np.concatenate(self._totals[name])

    def coverage(self, name: str) -> float:
        """Share of turns whose step credit rests on a comparison or an estimate."""
        return self._covered[name] / self.anchors.turns

    def step_mean(self, name: str) -> float:
        """Mean size of the step credit."""
        return self._step_size[name] / self.anchors.turns


def show(summary: Summary, first: ScoredGroup) -> None:
    """Print all tables; `first` is the group that is shown turn by turn."""
    out = _Console(highlight=False)
    if not out.is_terminal:
        out.width = _PLAIN_WIDTH
    anchors = summary.anchors
    out.print(
        f"{summary.num_groups:,} groups, {summary.num_trajectories:,} trajectories "
        f"({summary.num_successes / summary.num_trajectories:.0%} succeed), {anchors.turns:,} turns in "
        f"{anchors.states:,} states"
    )
    out.print(
        f"{anchors.singleton_share:.1%} of turns are in a state met once (singletons); {anchors.aliased_share:.1%} of "
        "repeated actions led to different states (aliasing or chance)\n"
    )
    out.print(_summary_table(summary, out))
    out.print()
    if len(summary.names) > 1:
        out.print(
            "Agreement of totals; above the diagonal rank correlation (Spearman), below share of opposite signs\n"
        )
        totals = {name: summary.totals(name) for name in summary.names}
        for names in _chunks(summary.names, out, _STRATEGY_WIDTH):
            out.print(_agreement_table(totals, names, out))
        out.print()
    task = shortened(first.group.task_id, width=60)
    trajectories = first.group.trajectories
    out.print(Text(f"Group {task}: {len(trajectories)} trajectories, total credit of every turn\n"))
    turns = [turn for t in trajectories for turn in t.turns]
    states = list(dict.fromkeys(turn.anchor for turn in turns))
    labels = dict(zip(states, short_labels(states, width=_ANCHOR_WIDTH), strict=True))
    widest = max(map(cell_len, labels.values())) + max(cell_len(_action(turn)) for turn in turns)
    for names in _chunks(summary.names, out, _STEP_COLUMNS_WIDTH + widest):
        out.print(_step_table(first, names, labels, out))


def _summary_table(summary: Summary, out: Console) -> Table:
    table = _table(out, "strategy", "groups", "turns", "coverage", "mean |step|", "mean |total|", num_texts=1)
    for name in summary.names:
        sizes = summary.step_mean(name), float(np.mean(np.abs(summary.totals(name))))
        table.add_row(
            name,
            f"{summary.num_groups:,}",
            f"{summary.anchors.turns:,}",
            f"{summary.coverage(name):.1%}",
            *(f"{size:.4f}" for size in sizes),
        )
    return table


def _agreement_table(totals: dict[str, Floats], columns: Sequence[str], out: Console) -> Table:
    """Above the diagonal ranks, below it signs: each pair of strategies stands in both halves once."""
    table = _table(out, "", *columns, num_texts=1)
    order = list(totals)
    for a in order:
        table.add_row(a, *(_agreement(totals, a, b, is_above=order.index(a) < order.index(b)) for b in columns))
    return table


def _agreement(totals: dict[str, Floats], a: str, b: str, *, is_above: bool) -> str:
    if a == b:
        return "·"
    if is_above:
        rank = rank_correlation(totals[a], totals[b])
        return "undefined" if rank is None else f"{rank:+.3f}"
    flips = sign_flip_share(totals[a], totals[b])
    return "undefined" if flips is None else f"{flips:.1%}"


def _step_table(scored: ScoredGroup, names: Sequence[str], labels: dict[str, str], out: Console) -> Table:
    table = _table(out, "trajectory", "turn", "state", "action", "reward", *names, num_texts=4)
    for i, trajectory in enumerate(scored.group.trajectories):
        for t, turn in enumerate(trajectory.turns):
            table.add_row(
                f"{i + 1} {trajectory.outcome}" if t == 0 else "",
                str(t + 1),
                Text(labels[turn.anchor]),
                Text(_action(turn)),
                f"{turn.reward:g}",
                *(f"{scored.credits[name].total[i][t]:+.4f}" for name in names),
                end_section=t == len(trajectory.turns) - 1 and out.is_terminal,
            )
    return table


def _action(turn: CreditTurn) -> str:
    return shortened(turn.action, width=_ACTION_WIDTH)


def _table(out: Console, *columns: str, num_texts: int) -> Table:
    """A table whose first columns are text and the others numbers; bare where nobody looks at a terminal."""
    table = Table(box=box.SIMPLE if out.is_terminal else None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < num_texts else "right", no_wrap=True, overflow="ellipsis")
    return table


def _chunks(names: Sequence[str], out: Console, used: int) -> Iterator[tuple[str, ...]]:
    """As many strategies at a time as fit beside what else stands in a row."""
    at_once = max(1, (out.width - used) // _STRATEGY_WIDTH)
    for start in range(0, len(names), at_once):
        yield tuple(names[start : start + at_once])
