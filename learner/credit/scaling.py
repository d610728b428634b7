"""Advantage normalisation over a batch: clip range, KL coefficient and learning rate mean the same for every strategy.

Works on whole batches, after filter and modulators and before any split over ranks. Never applied to a group alone:
what a group earned in comparison with other groups must survive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from milepost.learner.credit.assignment import Credit, Floats, Scaling

ROUNDING = 1e-9
"""Values that differ by less than this share of the largest one differ by rounding only."""
TINIEST = 1e-12
"""A batch whose totals are smaller than this on average is all rounding."""


def scaled(credits: Sequence[Credit], weights: Sequence[Sequence[Floats]], scaling: Scaling) -> list[Credit]:
    """Advantage normalisation: bring the totals of a batch to the scale of the loss.

    `unit_rms` divides by the batch's root mean square over turns and centres nothing, so a sign stays a sign, and the
    totals have the size 1 also where all have one sign; that is ours, for the pitfall of a step weight of 5.
    `whiten_turns` subtracts the mean and divides by the standard deviation (ddof=1), every turn counting once (StepPO,
    arXiv 2604.18401); `whiten_tokens` does so over tokens, and whitens `token_total` (VAGEN's bi-level GAE). A batch
    without spread is centred only, one of zeros stays. The divisor is reported as the diagnostic `batch_scale`.

    Args:
        credits: one per group of the batch, N groups.
        weights: N sequences of G arrays `[T_i]`, each >= 0: how often the loss counts a turn (`unit_rms` only).

    Raises:
        ValueError: weights and credits differ in shape, a weight is negative or not finite, or `whiten_tokens` meets
            a credit without `token_total`.

    >>> from milepost.learner.credit.assignment import CreditGroup
    >>> from milepost.learner.credit.strategies.starpo import StarPO, StarPOConfig
    >>> group = CreditGroup.from_walks("A x B success", "A y C failure")
    >>> credit = StarPO(StarPOConfig(baseline="dr_grpo")).assign(group)  # 0.5 and -0.5
    >>> [brought] = scaled([credit], [[np.ones(1), np.ones(1)]], "unit_rms")
    >>> [x.tolist() for x in brought.total]
    [[1.0], [-1.0]]
    """
    _check_weights(credits, weights)
    if not credits:
        return []
    if scaling == "unit_rms":
        values = np.concatenate([x for credit in credits for x in credit.total])
        divisor = _weighted_rms(values, np.concatenate([np.asarray(w, np.float64) for g in weights for w in g]))
        return [_moved(credit, 0.0, divisor) for credit in credits]
    if scaling == "whiten_turns":
        values = np.concatenate([x for credit in credits for x in credit.total])
    else:
        values = np.concatenate([x for credit in credits for turns in _token_totals(credit) for x in turns])
    divisor = float(np.std(values, ddof=1)) if _has_spread(values) else 1.0
    return [_moved(credit, float(np.mean(values)), divisor) for credit in credits]


def _moved(credit: Credit, centre: float, divisor: float) -> Credit:
    """`(total - centre) / divisor`, for turns and tokens alike."""
    tokens = credit.token_total
    return replace(
        credit,
        total=tuple((x - centre) / divisor for x in credit.total),
        token_total=None if tokens is None else tuple(tuple((x - centre) / divisor for x in turns) for turns in tokens),
        diagnostics={**credit.diagnostics, "batch_scale": divisor},
    )


def _token_totals(credit: Credit) -> tuple[tuple[Floats, ...], ...]:
    if credit.token_total is None:
        raise ValueError("whiten_tokens needs token_total in every credit; this strategy credits turns")
    return credit.token_total


def _weighted_rms(values: Floats, weights: Floats) -> float:
    """Weighted root mean square; 1 where nothing counts, or nothing but rounding."""
    if not np.any(weights > 0):
        return 1.0
    rms = float(np.sqrt(np.average(values**2, weights=weights)))
    return rms if rms > TINIEST else 1.0


def _has_spread(values: Floats) -> bool:
    return values.size > 1 and bool(np.ptp(values) > ROUNDING * np.max(np.abs(values)))


def _check_weights(credits: Sequence[Credit], weights: Sequence[Sequence[Floats]]) -> None:
    have = [[x.shape for x in credit.total] for credit in credits]
    given = [[np.shape(w) for w in group] for group in weights]
    if have != given:
        raise ValueError(f"weights have shapes {given} but the credits' totals have {have}")
    for group in weights:
        for w in group:
            if not np.all(np.isfinite(w)) or np.any(np.asarray(w) < 0):
                raise ValueError("a turn's weight is negative or not finite; use token counts, 1 or 0")
