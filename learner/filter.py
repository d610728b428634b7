"""Which groups are worth an optimizer step: those whose trajectories differ, most different first.

Groups without reward variance drown the signal in regularisation noise (RAGEN-2, arXiv 2604.06268). Credit is computed
before groups are dropped, so a group whose rewards are all equal but whose turns still earned step credit is kept. The
filter only judges; it changes no advantage, and an empty result means that the caller skips the optimizer step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from milepost.learner.credit.assignment import Credit, CreditGroup
from milepost.learner.credit.baseline import reward_std

Reason = Literal["unfiltered", "top_p", "step_signal", "zero_variance", "low_variance"]
REASONS: tuple[Reason, ...] = get_args(Reason)
"""Every reason a verdict can give: the first three keep a group, the last two drop it."""

SLACK = 0.01
"""Published slack of the top-p sum, in units of reward."""


class FilterConfig(BaseModel):
    """Which groups reach the optimizer."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: Literal["top_p", "none"] = Field(
        "top_p", description="top_p keeps the groups with the largest reward std; none keeps all"
    )
    top_p: float = Field(
        0.9, gt=0, le=1, description="Share of the summed reward std to keep; 1 drops zero variance only"
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a group is trained on. `score` is the standard deviation (ddof=1) of its un-penalised returns."""

    keep: bool
    reason: Reason
    score: float


def keep_groups(groups: Sequence[CreditGroup], credits: Sequence[Credit], config: FilterConfig) -> list[Verdict]:
    """Judge N groups together; the result has one verdict per group, in order.

    `top_p` is the linear filter of RAGEN-2: with scores sorted in descending order, groups are taken until their sum
    reaches `top_p * sum(scores) - 0.01`; where that is not positive, no group is taken. Equal scores are taken in order
    of appearance. A group of zero variance (a score of exactly 0, see `reward_std`) is no candidate: it is kept for its
    step credit or dropped.

    Raises:
        ValueError: the numbers of groups and credits differ.
    """
    if len(groups) != len(credits):
        raise ValueError(f"{len(groups)} groups with {len(credits)} credits; pass one credit per group, in order")
    scores = [reward_std(group.penalised_rewards(0.0)) for group in groups]
    if config.method == "none":
        return [Verdict(True, "unfiltered", score) for score in scores]
    chosen = _top_p(scores, config.top_p)
    verdicts = []
    for index, (score, credit) in enumerate(zip(scores, credits, strict=True)):
        if score == 0:
            signal = _has_step_signal(credit)
            verdicts.append(Verdict(signal, "step_signal" if signal else "zero_variance", score))
        else:
            keep = index in chosen
            verdicts.append(Verdict(keep, "top_p" if keep else "low_variance", score))
    return verdicts


def _top_p(scores: Sequence[float], top_p: float) -> set[int]:
    """Indices of the largest scores that together reach `top_p` of the sum, less the slack."""
    candidates = sorted((i for i, u in enumerate(scores) if u > 0), key=lambda i: -scores[i])
    if top_p == 1:
        return set(candidates)
    threshold = top_p * sum(scores[i] for i in candidates) - SLACK
    chosen: set[int] = set()
    reached = 0.0
    for index in candidates:
        if reached >= threshold:
            break
        reached += scores[index]
        chosen.add(index)
    return chosen


def _has_step_signal(credit: Credit) -> bool:
    """Whether some covered turn earned step credit that also reached the total (a step weight of 0 keeps it out)."""
    return any(
        bool(np.any((covered > 0) & (step != 0) & (total != 0)))
        for covered, step, total in zip(credit.coverage, credit.step_adv, credit.total, strict=True)
    )
