"""Two policies on one suite: where the second is better, worse or undecided, and how much more would decide.

Episodes are paired by scenario and number, and all of them together are the reference by which both are scored: values
that each policy's own episodes gave would measure each with another rule. Texts are not kept in results, so the lexical
scores stand as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.evaluation.reference import reference_of
from milepost.cluster.evaluation.results import ALL, JudgedBy, Played, Results, ScenarioPlayed, in_buckets
from milepost.reward.evaluators.differences import Difference, compare_outcomes, compare_scores
from milepost.reward.evaluators.native import native_scores
from milepost.reward.evaluators.signals import tokens_of

Read = Callable[[Played], float | None]
Test = Callable[[Sequence[float], Sequence[float]], Difference]
Metric = tuple[Read, Test]
Pair = tuple[Played, Played]


class Compared(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number in one bucket."""

    bucket: str
    metric: str
    first: float
    second: float
    """Means over the pairs."""
    difference: Difference


class Comparison(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of the second results with the first."""

    first: str
    second: str
    pairs: int
    unpaired: int
    """Episodes of either without one of the other."""
    notes: list[str]
    compared: list[Compared]


def compare(first: Results, second: Results) -> Comparison:
    """Raises ConfigError where they played different suites, or have no episode in common."""
    if first.suite.sha256 != second.suite.sha256:
        raise ConfigError(f"{_told(first)} and {_told(second)} do not compare: play both policies on one suite")
    metrics = _METRICS | _judged_metrics(first, second)
    others = {scenario.name: scenario for scenario in second.scenarios}
    paired = {scenario.name: _paired(scenario, others[scenario.name]) for scenario in first.scenarios}
    pairs = {
        name: [pair for s in found for pair in paired[s.name]] for name, found in in_buckets(first.scenarios).items()
    }
    total = len(pairs[ALL])
    if not total:
        raise ConfigError(f"{_told(first)} and {_told(second)} have no episode in common; play them again")
    played = sum(len(s.episodes) for results in (first, second) for s in results.scenarios)
    return Comparison(
        first=_name(first),
        second=_name(second),
        pairs=total,
        unpaired=played - 2 * total,
        notes=_notes(first, second),
        compared=[row for name, found in pairs.items() if found for row in _rows(name, found, metrics)],
    )


def _name(results: Results) -> str:
    return f"{results.policy.source} version {results.policy.version}"


def _told(results: Results) -> str:
    suite = results.suite
    return f"{_name(results)} (suite {suite.name} of {suite.created}, sha256 {suite.sha256[:12]})"


def _notes(first: Results, second: Results) -> list[str]:
    notes = []
    for key in ("temperature", "max_tokens", "max_turns"):
        a, b = getattr(first.policy, key), getattr(second.policy, key)
        if a != b:
            notes.append(f"{key} was {a:g} for the first and {b:g} for the second: part of a difference may be that")
    if first.policy.sha256 == second.policy.sha256:
        notes.append("both are the same policy by their digests: what differs is chance")
    if first.judge is not None and second.judge is not None and not _same_judge(first, second):
        notes.append(
            f"judged scores do not compare: {_judge_told(first.judge)} judged the first, {_judge_told(second.judge)} "
            "the second"
        )
    return notes


def _judge_told(judge: JudgedBy) -> str:
    return f"{judge.name} (weights {judge.weights_digest[:12]}, prompt {judge.prompt_sha256[:12]})"


def _same_judge(first: Results, second: Results) -> bool:
    one, other = first.judge, second.judge
    return one is not None and other is not None and _pins(one) == _pins(other)


def _pins(judge: JudgedBy) -> tuple[str, str]:
    return judge.weights_digest, judge.prompt_sha256


def _judged_metrics(first: Results, second: Results) -> dict[str, Metric]:
    """The scores of a judge, where one and the same judged both."""
    if not _same_judge(first, second):
        return {}

    def reading(name: str) -> Read:
        return lambda played: None if played.judged is None else played.judged.scores.get(name)

    return {f"judged {name}": (reading(name), compare_scores) for name in first.buckets[ALL].judged}


def _paired(first: ScenarioPlayed, second: ScenarioPlayed) -> list[Pair]:
    """Their episodes of equal numbers, scored by those of both."""
    both = [played.episode for played in (*first.episodes, *second.episodes)]
    if not both:
        return []
    reference = reference_of(both, first.expected)

    def again(played: Played) -> Played:
        return msgspec.structs.replace(played, native=native_scores(played.episode, reference, first.expected))

    others = {played.number: played for played in second.episodes}
    return [(again(p), again(others[p.number])) for p in first.episodes if p.number in others]


def _rows(bucket: str, pairs: Sequence[Pair], metrics: Mapping[str, Metric]) -> Iterator[Compared]:
    """One row for every number that some pair has on both sides."""
    for metric, (read, test) in metrics.items():
        there = [(a, b) for pair in pairs if (a := read(pair[0])) is not None and (b := read(pair[1])) is not None]
        if there:
            first, second = [a for a, _ in there], [b for _, b in there]
            yield Compared(
                bucket=bucket,
                metric=metric,
                first=math.fsum(first) / len(there),
                second=math.fsum(second) / len(there),
                difference=test(first, second),
            )


def _tokens(played: Played) -> float:
    tokens = tokens_of(played.episode)
    return float(tokens.prompt + tokens.response)


def _outcomes(first: Sequence[float], second: Sequence[float]) -> Difference:
    return compare_outcomes([x > 0 for x in first], [x > 0 for x in second])


def _fewer(first: Sequence[float], second: Sequence[float]) -> Difference:
    return compare_scores(first, second, higher_is_better=False)


_METRICS: Final[dict[str, Metric]] = {
    "success": (lambda played: played.native.success, _outcomes),
    "safety": (lambda played: played.native.safety, _outcomes),
    "trajectory_score": (lambda played: played.native.trajectory_score, compare_scores),
    "goal_progress": (lambda played: played.native.goal_progress, compare_scores),
    "step_efficiency": (lambda played: played.native.step_efficiency, compare_scores),
    "tool_selection": (lambda played: played.native.tool_selection, compare_scores),
    "steps": (lambda played: float(len(played.episode.steps)), _fewer),
    "tokens": (_tokens, _fewer),
}
"""What is compared, how it is read off an episode, and by which test."""
