"""Two policies on one suite: where the second is better, worse or undecided, and how much more would decide.

Episodes are paired by scenario and number, and all of them together are the reference by which both are scored: values
that each policy's own episodes gave would measure each with another rule. Texts are not kept in results, so the lexical
scores stand as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.evaluation.reference import reference_of
from milepost.cluster.evaluation.results import Played, Results, ScenarioPlayed, in_buckets
from milepost.reward.evaluators.differences import Difference, compare_outcomes, compare_scores
from milepost.reward.evaluators.native import native_scores
from milepost.reward.evaluators.signals import tokens_of

Read = Callable[[Played], float | None]
Pair = tuple[Played, Played]
_NATIVE = ("trajectory_score", "goal_progress", "step_efficiency", "tool_selection")


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
    paired = [_paired(a, b) for a, b in zip(*_aligned(first, second), strict=True)]
    pairs = {name: [pair for s in found for pair in paired[s]] for name, found in _places(first).items()}
    total = sum(len(pair) for pair in paired)
    if not total:
        raise ConfigError(f"{_told(first)} and {_told(second)} have no episode in common; play them again")
    played = sum(len(s.episodes) for results in (first, second) for s in results.scenarios)
    return Comparison(
        first=_name(first),
        second=_name(second),
        pairs=total,
        unpaired=played - 2 * total,
        notes=list(_notes(first, second)),
        compared=[row for name, found in pairs.items() if found for row in _rows(name, found)],
    )


def _name(results: Results) -> str:
    return f"{results.policy.source} version {results.policy.version}"


def _told(results: Results) -> str:
    suite = results.suite
    return f"{_name(results)} (suite {suite.name} of {suite.created}, sha256 {suite.sha256[:12]})"


def _notes(first: Results, second: Results) -> Sequence[str]:
    notes = []
    for key in ("temperature", "max_tokens", "max_turns"):
        a, b = getattr(first.policy, key), getattr(second.policy, key)
        if a != b:
            notes.append(f"{key} was {a:g} for the first and {b:g} for the second: part of a difference may be that")
    if first.policy.sha256 == second.policy.sha256:
        notes.append("both are the same policy by their digests: what differs is chance")
    return notes


def _aligned(first: Results, second: Results) -> tuple[list[ScenarioPlayed], list[ScenarioPlayed]]:
    """Their scenarios in one order; equal hashes have equal scenarios."""
    by_name = {scenario.name: scenario for scenario in second.scenarios}
    return first.scenarios, [by_name[scenario.name] for scenario in first.scenarios]


def _places(results: Results) -> dict[str, list[int]]:
    """The buckets as places in the list of scenarios."""
    place = {scenario.name: s for s, scenario in enumerate(results.scenarios)}
    return {name: [place[s.name] for s in found] for name, found in in_buckets(results.scenarios).items()}


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


def _rows(bucket: str, pairs: Sequence[Pair]) -> list[Compared]:
    rows = []
    for metric in ("success", "safety"):
        rows += _row(
            bucket,
            metric,
            pairs,
            _native(metric),
            lambda a, b: compare_outcomes([x > 0 for x in a], [x > 0 for x in b]),
        )
    for metric in _NATIVE:
        rows += _row(bucket, metric, pairs, _native(metric), compare_scores)
    for metric, read in (("steps", _steps), ("tokens", _tokens)):
        rows += _row(bucket, metric, pairs, read, lambda a, b: compare_scores(a, b, higher_is_better=False))
    return rows


def _row(
    bucket: str, metric: str, pairs: Sequence[Pair], read: Read, test: Callable[[list[float], list[float]], Difference]
) -> list[Compared]:
    """One row, or none where no pair has the number on both sides."""
    there = [(a, b) for pair in pairs if (a := read(pair[0])) is not None and (b := read(pair[1])) is not None]
    if not there:
        return []
    first, second = [a for a, _ in there], [b for _, b in there]
    means = [sum(values) / len(there) for values in (first, second)]
    return [Compared(bucket=bucket, metric=metric, first=means[0], second=means[1], difference=test(first, second))]


def _native(metric: str) -> Read:
    return lambda played: getattr(played.native, metric)


def _steps(played: Played) -> float:
    return float(len(played.episode.steps))


def _tokens(played: Played) -> float:
    tokens = tokens_of(played.episode)
    return float(tokens.prompt + tokens.response)
