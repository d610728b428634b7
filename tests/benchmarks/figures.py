"""What a benchmark of whole runs measures of each, as it is kept in JSON, and the rates that follow. Pure.

A run is a list of updates: of those after the warm-up the ones that the machine's host disturbed least. Rates are over
all of them together, and the rate of several runs is their median.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Final

import msgspec

from milepost.cluster.runlog.records import IterationRecord
from tests.benchmarks.buffer import Row

PHASES: Final = {
    "rollout": "wait_s", "train": "train_s", "commit": "commit_s", "publish": "publish_s", "check": "check_s",
}  # fmt: skip
"""Of an update -> where its record has it; `rollout` is what the learner waits."""
OTHER: Final = "other"
"""The phase of all that is left of an update's time."""
MOST_STOLEN: Final = 0.05
"""Above it an update is measured again."""
PAUSED: Final = ("pause", "load", "verify", "commit")
"""Parts of a publish (`IterationRecord.transfer_s`) in which engines sample nothing."""


_STORED: Final = ("finished", "applied")
"""States of the ledger in which an episode lies in the buffer."""


class Update(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One update, from the end of the one before to its own."""

    seconds: float
    cpu_s: float
    """Of all processes of the run."""
    episodes: int
    sampled: int
    """Tokens."""
    stolen: float
    """Share of the CPU time that this machine asked for and its host gave to others."""
    phases: dict[str, float]
    """Seconds."""


class Run(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run, without its warm-up."""

    updates: list[Update]
    start_s: float
    """From the command to the first episode."""
    memory_bytes: int
    """Of all processes, what they share counted once; the most at the end of an update."""
    turns: float
    """Of an episode, on the mean."""
    context_tokens: float
    """Of an episode's last prompt with its response, on the mean."""
    stored_bytes: float | None = None
    """Of an episode in the buffer."""
    publish_s: dict[str, float] = {}
    """Medians, by part."""


class Pass(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The episodes of one update through the engine alone, or through the learner's step alone."""

    seconds: float
    cpu_s: float
    episodes: int


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a section was measured."""

    cores: int
    cpu: str
    day: str
    """ISO 8601."""


class Section(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is measured together, and kept in one file."""

    machine: Machine
    runs: dict[str, list[Run]] = {}
    """By the name of the way to train, in the order in which they were made."""
    ceilings: dict[str, list[Pass]] = {}
    """Of `engine` and `step`."""
    learner: dict[str, dict[str, float]] = {}
    """Workload -> packing -> episodes per CPU second of the learner's step."""
    buffer: list[Row] = []


def updates_of(
    records: Sequence[IterationRecord], cpu_s: Sequence[float], stolen: Sequence[float], *, warm_up: int
) -> list[Update]:
    """The updates after the first `warm_up` ones.

    Args:
        cpu_s: what the run had taken at the end of each record.
        stolen: by others, from the record before to each.
    """
    found = []
    ends = zip(pairwise(records), pairwise(cpu_s), stolen[1:], strict=True)
    for (before, record), (cpu_before, cpu), share in ends:
        if record.iteration <= warm_up:
            continue
        seconds = (record.time_s or 0.0) - (before.time_s or 0.0)
        phases = {phase: getattr(record, field) or 0.0 for phase, field in PHASES.items()}
        phases[OTHER] = max(0.0, seconds - sum(phases.values()))
        found.append(
            Update(
                seconds=seconds, cpu_s=cpu - cpu_before, episodes=record.episodes, sampled=record.tokens,
                stolen=share, phases=phases,
            )
        )  # fmt: skip
    return found


def calm(updates: Sequence[Update]) -> list[Update]:
    """Those that the host left alone."""
    return [update for update in updates if update.stolen <= MOST_STOLEN]


def calmest(updates: Sequence[Update], count: int) -> list[Update]:
    """The `count` updates that the host disturbed least, in their order."""
    chosen = sorted(range(len(updates)), key=lambda k: updates[k].stolen)[:count]
    return [updates[k] for k in sorted(chosen)]


def stolen_share(updates: Sequence[Update]) -> float:
    """Of the CPU time that was asked for, mean over updates."""
    return fmean(update.stolen for update in updates)


def stored_bytes(records: Sequence[IterationRecord]) -> float | None:
    """Bytes of an episode in the buffer; a checkpoint takes episodes out, so the median over records that hold some."""
    held = [(record.buffer_bytes, sum(record.ledger.get(state, 0) for state in _STORED)) for record in records]
    return median(size / count for size, count in held if count) if any(count for _, count in held) else None


def publish_parts(records: Sequence[IterationRecord]) -> dict[str, float]:
    """Median seconds that the learner waited, that engines paused, and of each part of a publication."""
    parts = dict.fromkeys(name for record in records for name in record.transfer_s)
    told = {name: median(record.transfer_s.get(name) or 0.0 for record in records) for name in parts}
    paused = median(sum(record.transfer_s.get(name) or 0.0 for name in PAUSED) for record in records)
    return {"learner waits": median(record.publish_s or 0.0 for record in records), "engines pause": paused, **told}


def rate(passed: Sequence[Update] | Sequence[Pass]) -> float:
    """Episodes per second."""
    return sum(each.episodes for each in passed) / sum(each.seconds for each in passed)


def cpu_per_episode(passed: Sequence[Update] | Sequence[Pass]) -> float:
    """CPU seconds."""
    return sum(each.cpu_s for each in passed) / sum(each.episodes for each in passed)


def sampled_rate(updates: Sequence[Update]) -> float:
    """Sampled tokens per second."""
    return sum(each.sampled for each in updates) / sum(each.seconds for each in updates)


def phase_seconds(updates: Sequence[Update]) -> dict[str, float]:
    """Mean seconds of an update, by phase."""
    names = dict.fromkeys(name for each in updates for name in each.phases)
    return {name: fmean(each.phases.get(name, 0.0) for each in updates) for name in names}


def typical(runs: Sequence[Run], measure: Callable[[Sequence[Update]], float]) -> float:
    """Median over runs of what `measure` says of their updates."""
    return median(measure(run.updates) for run in runs)


def spread(runs: Sequence[Run]) -> float:
    """How far the rates of runs of one kind lie apart: the largest over the smallest, less 1."""
    rates = [rate(run.updates) for run in runs]
    return max(rates) / min(rates) - 1


def overlapped_ceiling(engine: float, step: float) -> float:
    """Episodes per second where engine and step work side by side: those of the slower one."""
    return min(engine, step)


def serial_ceiling(engine: float, step: float) -> float:
    """The same where they take turns.

    >>> serial_ceiling(6.0, 3.0)
    2.0
    """
    return 1 / (1 / engine + 1 / step)
