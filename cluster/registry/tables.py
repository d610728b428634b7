"""The registry in a terminal: its versions, its history, and how often a promotion was taken back."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from milepost.cluster.evaluation.tables import aligned
from milepost.cluster.registry.registry import State
from milepost.cluster.registry.rollbacks import RollbackRate
from milepost.cluster.registry.trail import Entry, NotServed, Promoted, RolledBack

_DIGITS = 12
"""Of a digest, enough to tell it by."""


def policies(state: State) -> list[str]:
    """A line for each version, the champion's with a star."""
    rows = [("", "version", "run", "policy version", "digest", "suite", "results")]
    for version, promoted in state.promotions.items():
        lineage = promoted.lineage
        rows.append(
            (
                "*" * (version == state.champion),
                str(version),
                lineage.source,
                str(lineage.policy_version),
                lineage.policy_sha256[:_DIGITS],
                f"{lineage.suite} {lineage.suite_sha256[:_DIGITS]}",
                ", ".join(f"{name} {value:.4g}" for name, value in lineage.measured.items()),
            )
        )
    return aligned(rows)


def history(state: State, rate: RollbackRate, window_days: float) -> Iterator[str]:
    """A line for each entry, the rollback rate, and the hash by which the whole trail can be told."""
    began: dict[int, float] = {}
    for entry in state.entries:
        yield f"{entry.number}  {_time(entry.at)}  {_told(entry, began)}"
        if isinstance(entry.event, Promoted | RolledBack):
            began[entry.event.version] = entry.at
    if rate.share is None:
        yield f"rollback rate: no promotion is {window_days:g} days old yet"
    else:
        share = f"{rate.share:.1%} [{rate.low:.1%}, {rate.high:.1%}]"
        taken_back = f"{rate.rolled_back} of {rate.promotions} promotions taken back within {window_days:g} days"
        yield f"rollback rate: {taken_back}, {share}"
    yield f"sha256 of the last entry: {state.last_sha256}"


def _told(entry: Entry, began: dict[int, float]) -> str:
    event = entry.event
    if isinstance(event, Promoted):
        lineage = event.lineage
        before = "the first champion" if event.replaced is None else f"in place of version {event.replaced}"
        return f"promoted version {event.version}, {before}: {lineage.source}, policy version {lineage.policy_version}"
    if isinstance(event, RolledBack):
        hours = (entry.at - began[event.left]) / 3600
        return f"rolled back to version {event.version} from {event.left} after {hours:.1f} h: {event.reason}"
    if isinstance(event, NotServed):
        return f"version {event.version} could not be served: {event.reason}"
    which = f"{event.source}, policy version {event.policy_version}, digest {event.policy_sha256[:_DIGITS]}"
    return f"refused {which} by the gate {event.gate_sha256[:_DIGITS]}: {'; '.join(event.reasons)}"


def _time(at: float) -> str:
    return datetime.datetime.fromtimestamp(at).isoformat(sep=" ", timespec="seconds")
