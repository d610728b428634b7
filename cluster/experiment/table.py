"""What an experiment found: from the metrics of its runs to one row per config and arm, as Markdown.

Plain arithmetic on what the runs recorded. Spread is the sample standard deviation over seeds; with few seeds it is
itself uncertain. A seed that never reached the success asked for has no number of episodes, and the table says so: the
mean is over the seeds that did, and stands beside their count. Nothing here tests a hypothesis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from milepost.cluster.experiment.plan import Cell, Measures
from milepost.cluster.runlog.records import EvalRecord, IterationRecord, evals, iterations, read_records
from milepost.envs.types import Split


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """Success in training after so many episodes, as the mean over a window of iterations."""

    episodes: int
    success: float


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Success of one policy on one split, with the 95 % Wilson interval."""

    success: float
    low: float
    high: float
    episodes: int


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    """One cell: how it ended and what it measured. A cell that has not finished has no results."""

    config: str
    arm: str
    seed: int
    planned_episodes: int
    status: str
    """`finished`, `failed`, `stopped` or `waiting`."""
    reason: str = ""
    """Why it failed."""
    run: str = ""
    """Id of its run folder, inside the experiment's."""
    before: dict[Split, Evaluation] = {}
    after: dict[Split, Evaluation] = {}
    curve: list[Point] = []
    episodes_to_reach: int | None = None
    """Training episodes until the running mean reached `Measures.reach`; None: it never did."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Mean and sample standard deviation of `count` numbers; `sd` is None for one number."""

    mean: float
    sd: float | None
    count: int


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One arm on one config, over its finished seeds."""

    config: str
    arm: str
    planned_episodes: int
    finished: int
    cells: int
    before: dict[Split, Spread]
    after: dict[Split, Spread]
    reached: Spread | None
    """Episodes to reach, over the seeds that did."""


def measured(cell: Cell, metrics: Path, run: str, measures: Measures) -> CellResult:
    """What a finished cell recorded in its metrics.jsonl. Raises ConfigError for a damaged one."""
    records = read_records(metrics)
    curve = running_success(iterations(records), measures.window)
    before, after = {}, {}
    for split in measures.splits:
        for record in evals(records, split):
            if record.iteration == 0:
                before[split] = _evaluation(record)
            if record.iteration == cell.run.run.iterations:
                after[split] = _evaluation(record)
    return CellResult(
        config=cell.config,
        arm=cell.arm,
        seed=cell.seed,
        planned_episodes=cell.episodes,
        status="finished",
        run=run,
        before=before,
        after=after,
        curve=curve,
        episodes_to_reach=next((point.episodes for point in curve if point.success >= measures.reach), None),
    )


def running_success(records: Sequence[IterationRecord], window: int) -> list[Point]:
    """One point per iteration from the `window`-th on: the episodes so far and the mean success of the last `window`.

    An iteration without a measured success makes the windows that hold it leave their point out.
    """
    points = []
    for end in range(window, len(records) + 1):
        known = [record.success for record in records[end - window : end] if record.success is not None]
        if len(known) == window:
            episodes = sum(record.episodes for record in records[:end])
            points.append(Point(episodes=episodes, success=math.fsum(known) / window))
    return points


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation (n - 1); None of no numbers."""
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Spread(mean=mean, sd=None, count=1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Spread(mean=mean, sd=math.sqrt(variance), count=len(values))


def rows(results: Sequence[CellResult], measures: Measures) -> list[Row]:
    """One row per config and arm, in the order in which they first appear."""
    keys = dict.fromkeys((result.config, result.arm) for result in results)
    return [_row([r for r in results if (r.config, r.arm) == key], measures) for key in keys]


def markdown(title: str, results: Sequence[CellResult], measures: Measures) -> str:
    """The results as a page: what was compared, at which budget, a table per config, and what is missing."""
    table = rows(results, measures)
    seeds = sorted({result.seed for result in results})
    lines = [
        f"# Experiment {title}",
        "",
        f"Mean ± sample standard deviation over seeds {', '.join(map(str, seeds))}, at equal training episodes. "
        "Success is that of the final policy, sampled as in training. "
        f"Episodes to {measures.reach:.0%}: training episodes until the mean success of {measures.window} iterations "
        "in a row reached it, over the seeds that did.",
    ]
    for config in dict.fromkeys(row.config for row in table):
        lines += ["", *_section([row for row in table if row.config == config], measures)]
    missing = [result for result in results if result.status != "finished"]
    if missing:
        lines += ["", f"**{len(missing)} of {len(results)} runs are missing:**", ""]
        lines += [
            f"* {result.config} {result.arm} seed {result.seed}: {result.status}"
            + (f" ({result.reason})" if result.reason else "")
            for result in missing
        ]
    return "\n".join(lines) + "\n"


def _row(results: Sequence[CellResult], measures: Measures) -> Row:
    done = [result for result in results if result.status == "finished"]
    reached = [result.episodes_to_reach for result in done if result.episodes_to_reach is not None]
    return Row(
        config=results[0].config,
        arm=results[0].arm,
        planned_episodes=results[0].planned_episodes,
        finished=len(done),
        cells=len(results),
        before=_by_split([result.before for result in done], measures),
        after=_by_split([result.after for result in done], measures),
        reached=spread(reached),
    )


def _by_split(found: Sequence[dict[Split, Evaluation]], measures: Measures) -> dict[Split, Spread]:
    spreads = {split: spread([one[split].success for one in found if split in one]) for split in measures.splits}
    return {split: value for split, value in spreads.items() if value is not None}


def _section(table: Sequence[Row], measures: Measures) -> list[str]:
    before = [
        f"{split} {_percent(spread([row.before[split].mean for row in table if split in row.before]), sd=False)}"
        for split in measures.splits
    ]
    columns = ["arm", *(f"success, {s}" for s in measures.splits), f"episodes to {measures.reach:.0%}", "runs"]
    lines = [
        f"## {table[0].config}",
        "",
        f"Budget: {table[0].planned_episodes:,} training episodes per run. Before training: {', '.join(before)}.",
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
    ]
    for row in table:
        cells = [row.arm, *(_percent(row.after.get(split)) for split in measures.splits)]
        lines.append(f"| {' | '.join([*cells, _reached(row), f'{row.finished} of {row.cells}'])} |")
    return lines


def _percent(value: Spread | None, *, sd: bool = True) -> str:
    if value is None:
        return "not measured"
    if value.sd is None or not sd:
        return f"{100 * value.mean:.1f} %"
    return f"{100 * value.mean:.1f} ± {100 * value.sd:.1f} %"


def _reached(row: Row) -> str:
    if row.finished == 0:
        return "not measured"
    if row.reached is None:
        return "not reached"
    number = f"{row.reached.mean:.0f}" + ("" if row.reached.sd is None else f" ± {row.reached.sd:.0f}")
    return number if row.reached.count == row.finished else f"{number} ({row.reached.count} of {row.finished} seeds)"


def _evaluation(record: EvalRecord) -> Evaluation:
    return Evaluation(
        success=record.success, low=record.success_low, high=record.success_high, episodes=record.episodes
    )
