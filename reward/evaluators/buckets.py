"""Scores of many episodes as means with intervals, over a bucket of them and by the index of their steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from milepost.reward.evaluators.differences import mean_interval
from milepost.reward.evaluators.episode import Episode, Expected, Reference
from milepost.reward.evaluators.native import NativeScores, broken_rules, goal_progress, good_choices
from milepost.reward.evaluators.signals import Prices, cost, nearest_rank, tokens_of
from milepost.reward.evaluators.wilson import wilson_interval

_SHARES = frozenset({"success", "safety"})
"""Scores that are a yes or no."""
_STEPS_APART = 32


@dataclass(frozen=True, slots=True)
class Scored:
    """An episode, what it was judged by, and its scores."""

    episode: Episode
    reference: Reference
    expected: Expected
    native: NativeScores
    lexical: dict[str, float]


class Mean(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of a score over the episodes that have it."""

    mean: float
    low: float | None
    high: float | None
    """95 % interval: Wilson's where the score is a yes or no, else by bootstrap; None where all are equal."""
    episodes: int


class Bucket(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a number of episodes scored and took."""

    episodes: int
    native: dict[str, Mean]
    """Without the scores that no episode has."""
    lexical: dict[str, Mean]
    judged: dict[str, Mean] = {}
    """Of a judge, over the episodes that it judged; empty without one."""
    truncated: Mean
    """Share that was cut off."""
    steps_p50: float
    steps_p99: float
    """Nearest rank, of all episodes, those that were cut off included."""
    tokens: Mean
    """Of prompts and responses."""
    tokens_p95: float
    tokens_per_success: float | None
    cost: Mean | None
    """None without prices."""
    cost_p95: float | None
    cost_per_success: float | None


class StepBucket(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What episodes did at one step."""

    step: int
    """From 0; the last one holds all from 31 on."""
    episodes: int
    """That got so far."""
    goal_progress: float
    """Mean of how far they had come at their best."""
    tool_selection: float | None
    """Share of good choices among those that can be compared."""
    violations: float
    """Share of the steps that broke a rule."""
    invalid: float
    """Share of the steps without a valid action."""


def bucket(scored: Sequence[Scored], prices: Prices | None) -> Bucket:
    """Of at least one episode; raises ValueError for none."""
    if not scored:
        raise ValueError("a bucket needs at least one episode")
    episodes = [each.episode for each in scored]
    won = sum(episode.won for episode in episodes)
    tokens = [float((t := tokens_of(episode)).prompt + t.response) for episode in episodes]
    costs = None if prices is None else [cost(tokens_of(episode), prices) for episode in episodes]
    steps = [len(episode.steps) for episode in episodes]
    return Bucket(
        episodes=len(scored),
        native=means([msgspec.structs.asdict(each.native) for each in scored]),
        lexical=means([each.lexical for each in scored]),
        truncated=_mean([float(episode.outcome == "truncated") for episode in episodes], is_share=True),
        steps_p50=nearest_rank(steps, 0.5),
        steps_p99=nearest_rank(steps, 0.99),
        tokens=_mean(tokens),
        tokens_p95=nearest_rank(tokens, 0.95),
        tokens_per_success=sum(tokens) / won if won else None,
        cost=_mean(costs) if costs else None,
        cost_p95=nearest_rank(costs, 0.95) if costs else None,
        cost_per_success=math.fsum(costs) / won if costs and won else None,
    )


def by_step(scored: Sequence[Scored]) -> list[StepBucket]:
    """One bucket per index of a step that any episode reached."""
    longest = max((len(each.episode.steps) for each in scored), default=0)
    return [_at(t, scored) for t in range(min(longest, _STEPS_APART))]


def _at(t: int, scored: Sequence[Scored]) -> StepBucket:
    there = [each for each in scored if len(each.episode.steps) > t]
    until = None if t == _STEPS_APART - 1 else t + 1
    steps = [step for each in there for step in each.episode.steps[t:until]]
    choices = [good for each in there for good in good_choices(each.episode, each.reference)[t:until]]
    compared = [good for good in choices if good is not None]
    so_far = [_cut(each.episode, until) for each in there]
    progress = [goal_progress(e, each.reference.value) for e, each in zip(so_far, there, strict=True)]
    broke = sum(
        bool(broken_rules([step], each.expected.forbidden)) for each in there for step in each.episode.steps[t:until]
    )
    return StepBucket(
        step=t,
        episodes=len(there),
        goal_progress=math.fsum(progress) / len(progress),
        tool_selection=sum(compared) / len(compared) if compared else None,
        violations=broke / len(steps),
        invalid=sum(step.action is None for step in steps) / len(steps),
    )


def _cut(episode: Episode, steps: int | None) -> Episode:
    """Its first steps; solved only where these are all."""
    if steps is None or steps >= len(episode.steps):
        return episode
    return msgspec.structs.replace(episode, steps=episode.steps[:steps], outcome="truncated")


def means(scores: Sequence[Mapping[str, float | None]]) -> dict[str, Mean]:
    """Of each score over the episodes that have it, in the order in which the scores come up."""
    found: dict[str, Mean] = {}
    for name in dict.fromkeys(name for each in scores for name in each):
        values = [value for each in scores if (value := each.get(name)) is not None]
        if values:
            found[name] = _mean(values, is_share=name in _SHARES)
    return found


def _mean(values: Sequence[float], *, is_share: bool = False) -> Mean:
    interval = wilson_interval(round(sum(values)), len(values)) if is_share else mean_interval(values)
    low, high = interval or (None, None)
    return Mean(mean=math.fsum(values) / len(values), low=low, high=high, episodes=len(values))
