"""What each turn of a group earned: as it is stored with the run, or by any strategy, scored again.

Scored again, a group stands alone: a strategy has its default settings, and neither the task's history nor the batch's
modulators and scaling. Compare signs and ranks, not sizes, with what is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from milepost.cluster.workbench import scoring
from milepost.cluster.workbench.credit_page import ScoredGroup, drawn
from milepost.learner.credit.assignment import INVALID, CreditGroup, CreditTrajectory, CreditTurn, escaped
from milepost.learner.credit.strategies import registry

Row = dict[str, Any]
STORED: Final = "stored"
STRATEGIES: Final = tuple(name for name in registry.SETTINGS if name != "custom")
"""By name only: what an address names is never loaded as code."""
_NOT_COMPARED: Final = ("failed", "late", "dead_letter")
_MOST_STATES: Final = 250


@dataclass(frozen=True, slots=True)
class Credited:
    """What each turn of a group's episodes earned, and the group's graph."""

    credit: dict[int, list[float | None]]
    """Episode -> one value per turn; None where there is none."""
    note: str
    """Why nothing is there, or what to know of it."""
    graph: dict[str, Any] | None = None
    """As `drawn` says; None where no graph can be made."""
    in_graph: list[int] = field(default_factory=list)
    """Episodes of the graph's trajectories, in their order."""

    @property
    def largest(self) -> float:
        """The largest size of a turn's credit."""
        return max((abs(x) for turns in self.credit.values() for x in turns if x is not None), default=0.0)


def credited(rows: Sequence[Row], steps: Mapping[int, Sequence[Row]], strategy: str) -> Credited:
    """The credit of a group's episodes.

    Args:
        rows: the episodes, whatever became of them.
        steps: episode -> its turns, as `Recorded.steps` gives them.
        strategy: one of `STRATEGIES`, or `STORED`.
    """
    compared = [row for row in rows if row["outcome"] is not None and row["fate"] not in _NOT_COMPARED]
    stored: dict[int, list[float | None]] = {e: [turn["credit"] for turn in turns] for e, turns in steps.items()}
    if not compared:
        return Credited(stored, "none of its episodes came to an end: there is nothing to compare")
    names = {row["strategy"] for row in compared if row["strategy"]}
    try:
        group = _group(compared, steps)
        graph = drawn(ScoredGroup(group, {})) if _is_small(group) else None
    except ValueError as error:
        return Credited(stored, f"no graph and no other strategy: {error}")
    if strategy == STORED:
        note = (
            f"as stored, by {', '.join(sorted(names))}" if names else "no update judged this group: nothing is stored"
        )
        return Credited(stored, note, graph, [row["episode"] for row in compared])
    found, note = _scored(group, strategy)
    values = {row["episode"]: turns for row, turns in zip(compared, found, strict=True)} if found else {}
    credit = {e: values.get(e, [None] * len(turns)) for e, turns in steps.items()}
    return Credited(credit, note, graph, [row["episode"] for row in compared])


def _scored(group: CreditGroup, name: str) -> tuple[list[list[float | None]], str]:
    """Credit by trajectory and turn, or why there is none."""
    strategy = scoring.chosen(name, [])[name]
    if (lack := scoring.missing(group, strategy.requires)) is not None:
        return [], f"{name} needs {lack}, which is not recorded"
    try:
        totals = strategy.assign(group).total
    except ValueError as error:
        return [], f"{name}: {error}"
    return [list(map(float, turns)) for turns in totals], f"scored again by {name} with its default settings"


def _group(rows: Sequence[Row], steps: Mapping[int, Sequence[Row]]) -> CreditGroup:
    """Raises ValueError where the states of an episode make no chain."""
    trajectories = tuple(
        CreditTrajectory(
            row["outcome"], tuple(_turn(step) for step in steps[row["episode"]]), bool(row["success_reported"])
        )
        for row in rows
    )
    return CreditGroup(rows[0]["group_id"], trajectories)


def _turn(step: Row) -> CreditTurn:
    return CreditTurn(
        anchor=step["anchor"],
        action=INVALID if step["action"] is None else escaped(step["action"]),
        next_anchor=step["next_anchor"],
        reward=step["reward"],
        invalid=step["action"] is None,
        num_tokens=step["num_tokens"],
        progress=step["progress"],
    )


def _is_small(group: CreditGroup) -> bool:
    return len({turn.anchor for t in group.trajectories for turn in t.turns}) <= _MOST_STATES
