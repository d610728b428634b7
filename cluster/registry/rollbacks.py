"""How often a promotion had to be taken back: rollbacks within a window over promotions whose window has closed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from milepost.cluster.registry.trail import Entry, Promoted, RolledBack
from milepost.reward.evaluators.wilson import wilson_interval


class RollbackRate(msgspec.Struct, frozen=True, kw_only=True):
    """Of the promotions whose window has closed."""

    promotions: int
    rolled_back: int
    """Of these, how many were taken back within their window."""
    share: float | None
    """None without such a promotion."""
    low: float
    high: float
    """95 % Wilson interval."""


def rollback_rate(entries: Sequence[Entry], *, now: float, window_s: float) -> RollbackRate:
    """The rate at `now`, seconds since 1970. A promotion was taken back where a rollback left its version.

    A promotion whose window is still open counts on neither side, also where it was taken back already: else a rollback
    would count at once, and a good promotion only later.
    """
    left: dict[int, float] = {}
    for entry in entries:
        if isinstance(entry.event, RolledBack):
            left.setdefault(entry.event.left, entry.at)
    closed = {e.event.version: e.at for e in entries if isinstance(e.event, Promoted) and now - e.at >= window_s}
    taken_back = sum(version in left and left[version] - at <= window_s for version, at in closed.items())
    low, high = wilson_interval(taken_back, len(closed))
    share = taken_back / len(closed) if closed else None
    return RollbackRate(promotions=len(closed), rolled_back=taken_back, share=share, low=low, high=high)
