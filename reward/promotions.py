"""How often a promoted policy is taken back: the rollback rate of a release history. Pure, for dashboards.

Inputs are the times of promotions and rollbacks as a user's registry of policies holds them; the house keeps none yet,
so nothing here is called by it. A rate over few promotions says little: read its interval.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from milepost.reward.evaluators import wilson_interval


class Promotion(msgspec.Struct, frozen=True, kw_only=True):
    """One policy that went into service. Raises ValueError if it was rolled back before it was promoted."""

    promoted_s: float
    """Seconds since any fixed moment, the same for all times."""
    rolled_back_s: float | None = None
    """When it was taken back; None if it never was."""

    def __post_init__(self) -> None:
        if self.rolled_back_s is not None and self.rolled_back_s < self.promoted_s:
            raise ValueError(f"rolled back at {self.rolled_back_s} s but promoted at {self.promoted_s} s")


class RollbackRate(msgspec.Struct, frozen=True, kw_only=True):
    """Rollbacks among the promotions whose window has closed."""

    matured: int
    """Promotions whose window has closed. The others are left out, also if already rolled back: counting only those
    would make a recent failure weigh more than a recent success."""
    rollbacks: int
    """Of the matured ones, those taken back within the window."""
    rate: float | None
    """None where no window has closed."""
    low: float
    high: float
    """Wilson 95 % interval of the rate."""
    median_time_s: float | None
    """From promotion to rollback, of those counted; None without a rollback."""


def rollback_rate(promotions: Sequence[Promotion], *, window_s: float, now_s: float) -> RollbackRate:
    """Share of promotions that were rolled back within `window_s` seconds, as known at `now_s`.

    A rollback at the very end of the window counts. Raises ValueError unless the window is longer than 0 s.
    """
    if window_s <= 0:
        raise ValueError(f"a window of {window_s} s holds no rollback; give a longer one")
    matured = [one for one in promotions if one.promoted_s + window_s <= now_s]
    times = [one.rolled_back_s - one.promoted_s for one in matured if one.rolled_back_s is not None]
    within = [time_s for time_s in times if time_s <= window_s]
    low, high = wilson_interval(len(within), len(matured))
    return RollbackRate(
        matured=len(matured),
        rollbacks=len(within),
        rate=len(within) / len(matured) if matured else None,
        low=low,
        high=high,
        median_time_s=statistics.median(within) if within else None,
    )
