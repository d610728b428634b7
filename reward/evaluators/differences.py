"""Intervals of means, and whether two policies differ on pairs of episodes, with how many more would tell.

A pair is an episode of each policy from one start and with the same luck. What is decided is decided for the scenarios
that were played, not for tasks like them. Each verdict may be wrong in one of twenty cases where nothing differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import msgspec
import numpy as np
from scipy import stats

Verdict = Literal["better", "worse", "undecided"]
LEVEL: Final = 0.05
POWER: Final = 0.8
FEWEST_PAIRS: Final = 6
"""With fewer no sign test reaches 5 %: even if all differ in one direction, 2^(1 - 5) = 6.25 %."""
_RESAMPLES = 9999
_ROUNDING = 1e-9
_MOST_DRAWN = 2_000_000  # values at a time


class Difference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the second policy differs from the first in one number."""

    pairs: int
    mean: float
    """Of the second less the first."""
    low: float | None
    high: float | None
    """95 % bootstrap interval of `mean`; None where all pairs differ by the same."""
    p: float | None = None
    """Of McNemar's exact test, where the number is a yes or no."""
    verdict: Verdict
    more_pairs: int | None
    """How many more would decide a difference of this size in four of five cases; None where it is decided, or where
    none was seen."""


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % BCa bootstrap interval of a mean (Efron 1987, by SciPy); None where all values are equal.

    The same for the same values: the resamples are drawn from a fixed seed.
    """
    if not values or max(values) - min(values) < _ROUNDING:
        return None
    batch = max(1, _MOST_DRAWN // len(values))
    found = stats.bootstrap(
        (np.asarray(values, dtype=np.float64),), np.mean, n_resamples=_RESAMPLES, batch=batch, rng=0
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def compare_outcomes(first: Sequence[bool], second: Sequence[bool]) -> Difference:
    """Paired yes or no, by McNemar's exact test (McNemar 1947): the binomial test of the pairs that differ.

    Raises ValueError for another length, or no pair.

    >>> found = compare_outcomes([False] * 8 + [True] * 2, [True] * 10)
    >>> found.verdict, round(found.p, 4)
    ('better', 0.0078)
    """
    changes = _changes(first, second)
    mean, differing = _mean(changes), float(np.mean(np.abs(changes)))
    gained, lost = changes.count(1.0), changes.count(-1.0)
    p = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    if p < LEVEL:
        return _difference(changes, "better" if mean > 0 else "worse", p=p)
    needed = max(FEWEST_PAIRS, pairs_for_outcomes(differing, mean)) if mean else None
    return _difference(changes, "undecided", needed, p=p)


def compare_scores(first: Sequence[float], second: Sequence[float], *, higher_is_better: bool = True) -> Difference:
    """Paired numbers, by the bootstrap interval of their mean difference; undecided below six pairs.

    Raises ValueError for another length, or no pair.
    """
    changes = _changes(first, second)
    mean, spread = _mean(changes), float(np.std(changes))
    low, high = mean_interval(changes) or (mean, mean)
    if len(changes) >= FEWEST_PAIRS and not low <= 0 <= high:
        return _difference(changes, "better" if (mean > 0) == higher_is_better else "worse")
    needed = max(FEWEST_PAIRS, pairs_for_scores(spread, mean)) if mean else None
    return _difference(changes, "undecided", needed)


def pairs_for_outcomes(differing: float, difference: float) -> int:
    """Pairs with which McNemar's test finds a `difference` in success in four of five cases (Connor 1987).

    n = (z_a sqrt(p) + z_b sqrt(p - d^2))^2 / d^2, where a share p of the pairs differs; z_a = 1.96, z_b = 0.84.

    >>> pairs_for_outcomes(differing=0.3, difference=0.1)
    234
    """
    z_a, z_b = _quantiles()
    root = z_a * math.sqrt(differing) + z_b * math.sqrt(max(0.0, differing - difference**2))
    return math.ceil((root / difference) ** 2)


def pairs_for_scores(spread: float, difference: float) -> int:
    """Pairs with which a mean `difference` is found in four of five cases, by the normal approximation.

    n = (z_a + z_b)^2 s^2 / d^2, where s is the standard deviation of the pairs' differences (Miller 2024,
    arXiv 2411.00640, for one episode of each policy and scenario).

    >>> pairs_for_scores(spread=0.5, difference=0.1)
    197
    """
    z_a, z_b = _quantiles()
    return math.ceil(((z_a + z_b) * spread / difference) ** 2)


def _quantiles() -> tuple[float, float]:
    return float(stats.norm.ppf(1 - LEVEL / 2)), float(stats.norm.ppf(POWER))


def _changes(first: Sequence[float], second: Sequence[float]) -> list[float]:
    if not first or len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} episodes make no pairs")
    return [float(b) - float(a) for a, b in zip(first, second, strict=True)]


def _mean(changes: Sequence[float]) -> float:
    """Without what rounding makes of equal scores."""
    mean = float(np.mean(changes))
    return 0.0 if abs(mean) < _ROUNDING else mean


def _difference(
    changes: Sequence[float], verdict: Verdict, needed: int | None = None, *, p: float | None = None
) -> Difference:
    low, high = mean_interval(changes) or (None, None)
    return Difference(
        pairs=len(changes),
        mean=_mean(changes),
        low=low,
        high=high,
        p=p,
        verdict=verdict,
        more_pairs=None if needed is None else max(1, needed - len(changes)),
    )
