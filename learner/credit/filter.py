"""Group filtering: which groups are worth an optimizer step, and with what weight; those with most to teach come first.

Groups without reward variance drown the signal in regularisation noise (RAGEN-2, arXiv 2604.06268). Credit is computed
before groups are dropped, so a group whose rewards are all equal but whose turns still earned step credit is kept. The
filter only judges; `weighted` applies its weights. If no group is kept, the caller skips the optimizer step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from milepost.learner.credit.assignment import Credit, CreditGroup, Need
from milepost.learner.credit.baseline import reward_std

Method = Literal["top_p", "top_p_softmax", "top_k", "top_k_absolute", "min_p", "soft", "none"]
Score = Literal["reward_std", "step_std", "length", "entropy"]
Reason = Literal["unfiltered", "selected", "step_signal", "reward_signal", "zero_variance", "low_score"]
REASONS: tuple[Reason, ...] = get_args(Reason)
"""Every reason a verdict can give: the first four keep a group, the last two drop it."""

SLACK = 0.01
"""Slack of the linear top-p sum, as a share of the sum."""
_ROUNDING = 1e-9


class FilterConfig(BaseModel):
    """Which groups reach the optimizer, and how much they count."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: Method = Field(
        "top_p",
        description="Filter rule: top_p keeps the largest scores up to a share of their sum; top_p_softmax, of "
        "their softmax; top_k, a share of the groups; top_k_absolute, that many groups; min_p, from a "
        "share of the largest score up; soft, all, each weighted by its score over the largest; none, "
        "every group. Several environments are judged apart",
    )
    value: float = Field(
        0.9,
        gt=0,
        description="Filter threshold: share of top_p, top_p_softmax, top_k and min_p, at most 1; number of "
        "groups of top_k_absolute",
    )
    score: Score = Field(
        "reward_std",
        description="Filter score of a group: reward_std of its returns; step_std of its turns' step credit; "
        "length in tokens per trajectory; entropy in nats per token. The last two prefer long or "
        "undecided groups and are for comparison",
    )
    compensation: Literal["none", "linear", "sqrt"] = Field(
        "none",
        description="Batch size compensation: multiply advantages by the kept share of the groups (linear) or its "
        "root (sqrt): few groups, small step",
    )

    @model_validator(mode="after")
    def _value_fits_the_method(self) -> Self:
        if self.method == "top_k_absolute":
            if self.value != int(self.value):
                raise ValueError(
                    f"value = {self.value:g} with method top_k_absolute: give a whole number of groups, e.g. value = 8"
                )
        elif self.value > 1:
            raise ValueError(
                f"value = {self.value:g} with method {self.method}: a share is at most 1, e.g. value = 0.9"
            )
        return self


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a group is trained on, and why."""

    keep: bool
    reason: Reason
    score: float
    weight: float
    """What the group's advantages are multiplied with after scaling; 0 for a group that is dropped."""


def needs(config: FilterConfig) -> frozenset[Need]:
    """What the score reads beyond states, actions and rewards; it must be measured before groups are judged."""
    return frozenset({"entropy"} if config.method != "none" and config.score == "entropy" else ())


def keep_groups(groups: Sequence[CreditGroup], credits: Sequence[Credit], config: FilterConfig) -> list[Verdict]:
    """Judge N groups together; the result has one verdict per group, in order.

    A group without any signal (returns all equal, see `reward_std`, and no step credit that reaches the total) is
    dropped under every method but `none`. A group with signal that its score doesn't see (a score of exactly 0) is kept
    with weight 1. Among the others, `u` of them, in descending order, equal scores in order of appearance:

    * `top_p`: taken until their sum reaches `(value - 0.01) * sum(u)`, at least the first. 1 takes all.
    * `top_p_softmax`: the shortest prefix whose softmax reaches `value`.
    * `top_k`: the first `max(1, floor(value * N))`. `top_k_absolute`: the first `value`.
    * `min_p`: those with `u >= value * max(u)`.
    * `soft`: all, with weight `u / max(u)`.

    Then every weight is multiplied by the kept share of the N groups (`linear`), its root (`sqrt`) or 1. Source:
    RAGEN-2 (arXiv 2604.06268) and its public code, `include_zero` off; `top_k` with 0.25 is the filter of StarPO-S
    (arXiv 2504.20073). Ours: step credit counts as signal, and `step_std`; the slack of `top_p` is a share of the sum,
    so that a verdict does not depend on the unit of the reward (in the public code it is 0.01 of that unit: the same
    where the scores add up to 1, and more than all of them where rewards are small).

    Raises:
        ValueError: the numbers of groups and credits differ, or the score needs an entropy that a turn lacks.

    >>> from milepost.learner.credit.strategies.starpo import StarPO, StarPOConfig
    >>> groups = [CreditGroup.from_walks("A x B success", f"A y C {end}") for end in ("failure", "success")]
    >>> credits = [StarPO(StarPOConfig()).assign(group) for group in groups]
    >>> [(verdict.keep, verdict.reason) for verdict in keep_groups(groups, credits, FilterConfig())]
    [(True, 'selected'), (False, 'zero_variance')]
    """
    if len(groups) != len(credits):
        raise ValueError(f"{len(groups)} groups with {len(credits)} credits; pass one credit per group, in order")
    if config.method == "none":
        return [Verdict(True, "unfiltered", reward_std(group.returns), 1.0) for group in groups]
    scores = [_score(group, credit, config.score) for group, credit in zip(groups, credits, strict=True)]
    signals = [_signal(group, credit) for group, credit in zip(groups, credits, strict=True)]
    candidates = [i for i, (u, signal) in enumerate(zip(scores, signals, strict=True)) if signal and u > 0]
    candidates.sort(key=lambda i: -scores[i])
    weights = _selected({i: scores[i] for i in candidates}, len(groups), config)
    verdicts = []
    for i, (u, signal) in enumerate(zip(scores, signals, strict=True)):
        if not signal:
            verdicts.append(Verdict(False, "zero_variance", u, 0.0))
        elif u == 0:
            verdicts.append(Verdict(True, signal, u, 1.0))
        else:
            verdicts.append(Verdict(i in weights, "selected" if i in weights else "low_score", u, weights.get(i, 0.0)))
    return _compensated(verdicts, config.compensation)


def weighted(credits: Sequence[Credit], verdicts: Sequence[Verdict]) -> list[Credit]:
    """Multiply every advantage that the loss uses by its group's weight.

    Comes after `milepost.learner.credit.scaling.scaled`: before it, a common factor would cancel. An optimizer that
    normalises its step, such as Adam, still undoes what stays the same from step to step.

    Raises:
        ValueError: the numbers of credits and verdicts differ.

    >>> from milepost.learner.credit.strategies.starpo import StarPO, StarPOConfig
    >>> group = CreditGroup.from_walks("A x B success", "A y C failure")
    >>> credit = StarPO(StarPOConfig(baseline="dr_grpo")).assign(group)
    >>> [halved] = weighted([credit], [Verdict(keep=True, reason="selected", score=0.7, weight=0.5)])
    >>> [x.tolist() for x in credit.total], [x.tolist() for x in halved.total]
    ([[0.5], [-0.5]], [[0.25], [-0.25]])
    """
    if len(credits) != len(verdicts):
        raise ValueError(
            f"{len(credits)} credits with {len(verdicts)} verdicts; pass those of the kept groups, in order"
        )
    return [_times(credit, verdict.weight) for credit, verdict in zip(credits, verdicts, strict=True)]


def reason_counts(verdicts: Sequence[Verdict]) -> dict[Reason, int]:
    """How many groups were kept or dropped for each reason; all reasons are there, also with 0.

    >>> counts = reason_counts([Verdict(keep=False, reason="low_score", score=0.1, weight=0.0)])
    >>> counts["low_score"], counts["selected"]
    (1, 0)
    """
    return {reason: sum(verdict.reason == reason for verdict in verdicts) for reason in REASONS}


def _score(group: CreditGroup, credit: Credit, score: Score) -> float:
    if score == "reward_std":
        return reward_std(group.returns)
    if score == "step_std":
        return float(np.std(np.concatenate(credit.step_adv)))
    if score == "length":
        return sum(turn.num_tokens for t in group.trajectories for turn in t.turns) / len(group.trajectories)
    return _entropy(group)


def _entropy(group: CreditGroup) -> float:
    """Mean over all tokens of the group, in nats."""
    tokens, total = 0, 0.0
    for i, trajectory in enumerate(group.trajectories):
        for t, turn in enumerate(trajectory.turns):
            if turn.entropy is None:
                raise ValueError(
                    f"filter.score = entropy: group {group.task_id}, trajectory {i}, turn {t} has no entropy; "
                    "it must be measured before groups are judged"
                )
            tokens += turn.num_tokens
            total += turn.num_tokens * turn.entropy
    return total / tokens


def _signal(group: CreditGroup, credit: Credit) -> Literal["reward_signal", "step_signal"] | None:
    """What the group can teach: its returns differ, or else its turns earned step credit; None if neither."""
    if reward_std(group.returns) > 0:
        return "reward_signal"
    # a step weight of 0 keeps step credit out of the total
    earned = any(
        bool(np.any((covered > 0) & (step != 0) & (total != 0)))
        for covered, step, total in zip(credit.coverage, credit.step_adv, credit.total, strict=True)
    )
    return "step_signal" if earned else None


def _selected(scores: dict[int, float], num_groups: int, config: FilterConfig) -> dict[int, float]:
    """Group -> weight of those taken. `scores` are of the candidates, in descending order."""
    order = list(scores)
    if not order:
        return {}
    if config.method == "soft":
        return {i: u / scores[order[0]] for i, u in scores.items()}
    if config.method == "top_k":
        taken = order[: max(1, math.floor(config.value * num_groups + _ROUNDING))]
    elif config.method == "top_k_absolute":
        taken = order[: int(config.value)]
    elif config.method == "min_p":
        taken = [i for i in order if scores[i] >= config.value * scores[order[0]]]
    else:
        taken = _prefix(scores, config)
    return dict.fromkeys(taken, 1.0)


def _prefix(scores: dict[int, float], config: FilterConfig) -> list[int]:
    """The candidates that together reach the share `config.value`, of the sum or of the softmax."""
    if config.value == 1:
        return list(scores)
    values = np.array(list(scores.values()))
    if config.method == "top_p":
        mass, wanted = values / values[0], config.value - SLACK
    else:
        mass, wanted = np.exp(values - values[0]), config.value
    before = np.concatenate(([0.0], np.cumsum(mass)[:-1])) / math.fsum(mass)
    return [i for k, (i, reached) in enumerate(zip(scores, before, strict=True)) if k == 0 or reached < wanted]


def _compensated(verdicts: Sequence[Verdict], how: Literal["none", "linear", "sqrt"]) -> list[Verdict]:
    if how == "none" or not verdicts:
        return list(verdicts)
    share = sum(verdict.keep for verdict in verdicts) / len(verdicts)
    factor = share if how == "linear" else math.sqrt(share)
    return [replace(verdict, weight=verdict.weight * factor) for verdict in verdicts]


def _times(credit: Credit, weight: float) -> Credit:
    tokens = credit.token_total
    return replace(
        credit,
        total=tuple(weight * x for x in credit.total),
        token_total=None if tokens is None else tuple(tuple(weight * x for x in turns) for turns in tokens),
    )
