"""Results and comparisons in a terminal: aligned lines that a pipe keeps whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from milepost.cluster.evaluation.compare import Compared, Comparison
from milepost.cluster.evaluation.results import Results
from milepost.reward.evaluators.buckets import Bucket, Mean
from milepost.reward.evaluators.signals import Prices

_BESIDE = (
    ("task", "success", "task_completion"),
    ("goal progress", "goal_progress", "goal_progress"),
    ("step efficiency", "step_efficiency", "step_efficiency"),
    ("tool selection", "tool_selection", "tool_selection"),
    ("  steps compared", "coverage", ""),
    ("safety", "safety", "action_safety"),
    ("reasoning", "", "reasoning_quality"),
    ("trajectory score", "trajectory_score", "trajectory_score"),
)
"""What is shown in a line, and what the trainer-native and the lexical score of it are called."""


def sentence(result: Mapping[str, Any]) -> str:
    """What `milepost eval` prints for people: a line, and one for each named environment and of several cohorts."""
    low, high = result["success_ci"]
    lines = [
        f"{result['run']}, policy version {result['policy_version']}, split {result['split']}: success "
        f"{result['success']:.1%} [{low:.1%}, {high:.1%}] in {result['episodes']} episodes"
    ]
    for kind, table in (("environment", result["envs"]), ("cohort", result["cohorts"])):
        if len(table) > 1 or kind == "environment":
            lines += [
                f"  {kind} {name}: success {found['success']:.1%} [{found['success_low']:.1%}, "
                f"{found['success_high']:.1%}] in {found['episodes']} episodes"
                for name, found in table.items()
            ]
    lines += [f"  environment {name} is left out: {cause}" for name, cause in result["failed"].items()]
    return "\n".join(lines)


def results_table(results: Results) -> str:
    """A block of lines for each bucket: trainer-native scores, lexical ones beside them, steps and tokens."""
    suite, policy = results.suite, results.policy
    lines = [
        f"{policy.source}, policy version {policy.version}, suite {suite.name} of {suite.created} "
        f"(sha256 {suite.sha256[:12]})"
    ]
    for name, bucket in results.buckets.items():
        lines += [
            "",
            *aligned([(f"{name}, {bucket.episodes} episodes", "trainer-native", "lexical"), *_scores(bucket)]),
        ]
        lines += aligned([(f"judged {name}", _mean(found)) for name, found in bucket.judged.items()])
        lines += _far_end(bucket, results.prices)
    lines += _judge(results)
    lines += [f"scenario {name} is left out: {reason}" for name, reason in results.failed.items()]
    return "\n".join(lines)


def comparison_table(comparison: Comparison) -> str:
    """One line per bucket and metric."""
    lines = [
        f"first   {comparison.first}",
        f"second  {comparison.second}",
        f"{comparison.pairs} pairs of episodes"
        + (f", {comparison.unpaired} episodes without one" if comparison.unpaired else ""),
        *comparison.notes,
        "",
    ]
    head = ("", "metric", "first", "second", "difference", "the second is", "to decide")
    rows = [head, *(_compared(row) for row in comparison.compared)]
    return "\n".join([*lines, *aligned(rows), "", "Of twenty verdicts where nothing differs, one is wrong by chance."])


def _scores(bucket: Bucket) -> Iterator[Sequence[str]]:
    for label, native, lexical in _BESIDE:
        yield label, _mean(bucket.native.get(native)), _mean(bucket.lexical.get(lexical))


def _judge(results: Results) -> Iterator[str]:
    """Who judged, and how far it can be relied on."""
    if (judge := results.judge) is None:
        return
    judgements = [p.judged for s in results.scenarios for p in s.episodes if p.judged is not None]
    failures = [judgement for judgement in judgements if judgement.failure]
    yield ""
    yield (
        f"judge {judge.name}: {judge.model} (weights {judge.weights_digest[:12]}, prompt {judge.prompt_sha256[:12]}); "
        f"{len(judgements) - len(failures)} of {len(judgements)} episodes judged"
    )
    if failures:
        contradicted = sum(judgement.contradicted for judgement in failures)
        yield f"not judged: {len(failures)}, {contradicted} of them against the facts; the first: {failures[0].failure}"
    if (found := judge.calibration) is not None and found.agreement is not None:
        drift = "unknown" if found.drift is None else f"{found.drift:.3f}"
        yield (
            f"calibration: as people in {found.agreement:.3f}{_interval(found.agreement_low, found.agreement_high)} of "
            f"{found.compared} labels, mean difference {found.mean_difference:+.3f}, drift {drift}"
        )
    if judge.unfit:
        yield f"may not decide a promotion: {'; '.join(judge.unfit)}"


def _far_end(bucket: Bucket, prices: Prices | None) -> Iterator[str]:
    yield f"steps: p50 {bucket.steps_p50:g}, p99 {bucket.steps_p99:g}; cut off {_mean(bucket.truncated)}"
    per = "no success" if bucket.tokens_per_success is None else f"{bucket.tokens_per_success:.0f} per success"
    yield f"tokens: mean {bucket.tokens.mean:.0f}, p95 {bucket.tokens_p95:.0f}, {per}"
    if bucket.cost is not None and prices is not None:
        per = "no success" if bucket.cost_per_success is None else f"{bucket.cost_per_success:.5f} per success"
        yield (
            f"cost: mean {bucket.cost.mean:.5f}, p95 {bucket.cost_p95:.5f}, {per}, at {prices.prompt:g} (cached "
            f"{prices.cached:g}) and {prices.response:g} a million tokens"
        )


def _mean(found: Mean | None) -> str:
    return "-" if found is None else f"{found.mean:.3f}{_interval(found.low, found.high)}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"


def _compared(row: Compared) -> Sequence[str]:
    found = row.difference
    digits = 0 if row.metric in ("steps", "tokens") and abs(row.first) >= 100 else 3
    change = f"{found.mean:+.{digits}f}{_interval(found.low, found.high)}"
    verdict = found.verdict + ("" if found.p is None else f" (p {found.p:.3f})")
    more = {True: f"{found.more_pairs} more pairs", False: "-"}[found.more_pairs is not None]
    if found.verdict == "undecided" and found.more_pairs is None:
        more = "no difference seen"
    return row.bucket, row.metric, f"{row.first:.{digits}f}", f"{row.second:.{digits}f}", change, verdict, more


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row, with its cells below those of the others."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
