"""Results before a gate: every line that they do not meet, in words. Pure arithmetic on what was played.

Not promised: that a policy which comes through is better. A relative limit refuses what is decided worse, and each such
verdict is wrong in one of twenty cases where nothing differs; p99 of few episodes is one episode.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.evaluation.compare import Compared, compare
from milepost.cluster.evaluation.results import ALL, Results
from milepost.cluster.registry.gate import EACH, LESS_IS_BETTER, Absolute, Gate, Metric, Relative
from milepost.reward.evaluators.buckets import Bucket

_COHORT = "cohort "


def require_fit(results: Results, whose: str, gate: Gate, policy_sha256: str) -> None:
    """Raises ConfigError unless the results are of this policy and of the gate's suite, and whole."""
    if results.policy.sha256 != policy_sha256:
        raise ConfigError(
            f"{whose}: the results are of a policy with digest {results.policy.sha256[:12]}, its own is "
            f"{policy_sha256[:12]}; play the suite with it: milepost eval --suite"
        )
    if results.suite.sha256 != gate.suite:
        raise ConfigError(
            f"{whose}: the results are of suite {results.suite.name} with hash {results.suite.sha256[:12]}, the gate "
            f"asks for {gate.suite[:12]}; play that suite, or change `suite` in the gate"
        )
    if results.failed:
        raise ConfigError(
            f"{whose}: scenarios could not be played: {', '.join(sorted(results.failed))}; mend that, and play again"
        )
    few = sorted(scenario.name for scenario in results.scenarios if len(scenario.episodes) < gate.episodes)
    if few:
        raise ConfigError(
            f"{whose}: fewer than {gate.episodes} episodes, which the gate asks for, of {', '.join(few)}; "
            f"milepost eval --episodes {gate.episodes} plays them"
        )


def measured(bucket: Bucket) -> dict[str, float]:
    """All that a gate can ask for."""
    return {metric: value for metric in get_args(Metric) if (value := _value(bucket, metric)) is not None}


def unmet(gate: Gate, results: Results, champion: Results | None) -> list[str]:
    """A line for each limit that `results` do not meet: metric, cohort, value, limit; relative ones need a champion."""
    reasons = [line for limit in gate.absolute for line in _absolute(limit, results)]
    if champion is not None and gate.relative:
        rows = {(row.metric, row.bucket): row for row in compare(champion, results).compared}
        reasons += [line for limit in gate.relative for line in _relative(limit, results, champion, rows)]
    return reasons


def _absolute(limit: Absolute, results: Results) -> Iterator[str]:
    for name in _buckets(limit.cohort, results):
        bucket = results.buckets.get(name)
        value = None if bucket is None else _value(bucket, limit.metric)
        if value is None:
            yield f"{limit.metric}, {name}: not measured, and its limit is {limit.limit:g}"
        elif limit.metric in LESS_IS_BETTER and value > limit.limit:
            yield f"{limit.metric}, {name}: {value:g} is above the limit of {limit.limit:g}"
        elif limit.metric not in LESS_IS_BETTER and value < limit.limit:
            yield f"{limit.metric}, {name}: {value:.3f} is below the limit of {limit.limit:g}"


def _relative(
    limit: Relative, results: Results, champion: Results, rows: dict[tuple[str, str], Compared]
) -> Iterator[str]:
    for name in _buckets(limit.cohort, results):
        if limit.metric == "steps_p99":
            told = _longest(limit, name, results, champion)
        elif (row := rows.get((limit.metric, name))) is None:
            told = "not measured beside the champion"
        else:
            told = _against(limit, row)
        if told:
            yield f"{limit.metric}, {name}: {told}"


def _longest(limit: Relative, name: str, results: Results, champion: Results) -> str:
    """What is wrong with p99 of steps in a bucket; empty where nothing is."""
    mine, before = results.buckets.get(name), champion.buckets.get(name)
    if mine is None or before is None:
        return "not measured beside the champion"
    most = before.steps_p99 * (1 + limit.tolerance)
    if mine.steps_p99 <= most:
        return ""
    return f"{mine.steps_p99:g} is above the champion's {before.steps_p99:g}, of which {most:g} would pass"


def _against(limit: Relative, row: Compared) -> str:
    """What is wrong with a compared number; empty where nothing is."""
    found = row.difference
    digits = 0 if limit.metric in LESS_IS_BETTER else 3
    told = f"{row.second:.{digits}f} against the champion's {row.first:.{digits}f}"
    if found.verdict == "undecided" and limit.undecided == "refuse":
        more = f"{found.more_pairs} more pairs would decide" if found.more_pairs else "no difference was seen"
        return f"{told} is undecided in {found.pairs} pairs, which the gate refuses; {more}"
    loss = abs(found.mean) / row.first if limit.metric in LESS_IS_BETTER and row.first else abs(found.mean)
    if found.verdict != "worse" or loss <= limit.tolerance:
        return ""
    p = "" if found.p is None else f" (p {found.p:.3f})"
    return f"{told} is worse{p}, by {loss:.3f} where {limit.tolerance:g} passes"


def _buckets(cohort: str, results: Results) -> list[str]:
    """Names of the buckets that a limit is about, as results and comparisons have them."""
    if cohort == EACH:
        return sorted({f"{_COHORT}{scenario.cohort}" for scenario in results.scenarios if scenario.cohort}) or [
            f"{_COHORT}{EACH}"
        ]
    return [f"{_COHORT}{cohort}" if cohort else ALL]


def _value(bucket: Bucket, metric: Metric) -> float | None:
    if metric == "tokens":
        return bucket.tokens.mean
    if metric == "steps_p99":
        return bucket.steps_p99
    found = bucket.native.get(metric)
    return None if found is None else found.mean
