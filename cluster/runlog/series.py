"""The run's numbers as Prometheus series: what each is called is in `gauges.py`, what a run writes in `records.py`.

A value that is not finite leaves its gauge as it was and is counted in `milepost_nonfinite_total{where}`: comparisons
with NaN never fire in PromQL, so alerts watch the counter. The number of series is bounded: it depends on the
configuration and on which states a run has met, not on how long it runs or how often a part was started again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from milepost.cluster.replay.buffer import Depth
from milepost.cluster.replay.ledger import Balance
from milepost.cluster.runlog.gauges import (
    ENVIRONMENT,
    EPISODES,
    EVALUATION,
    GROUPS,
    ITERATION,
    PHASES,
    PREFIX,
    RESTARTS,
    SECONDS,
    read,
)
from milepost.cluster.runlog.records import EvalRecord, IterationRecord, Number, Record
from milepost.reward.evaluators.summary import MAX_COHORTS, OTHER, CohortSuccess, together
from milepost.reward.evaluators.wilson import wilson_interval

_TRANSFER = ("gather", "fetch", "pause", "load", "verify", "commit")


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemView:
    """What the parts of a running system are at one moment: seen every few seconds, written nowhere."""

    engines: Mapping[int, int | None]
    """Index of an engine -> the policy version it serves; None while it is not in rotation."""
    workers: int
    """Workers that run."""
    restarts: Mapping[str, int]
    """Restarts so far, by part: engine, worker, learner."""
    depth: Depth
    balance: Balance
    unsaved_updates: int
    """Updates that no checkpoint holds."""
    spans: Mapping[str, int]
    """Spans of episodes so far, by what became of them: sent, lost. Empty where nothing is traced."""


class Series:
    """All series of one run, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._iteration = {field: self._gauge(name, text) for field, name, text in ITERATION}
        self._success = [self._gauge(f"success_{end}_ratio", f"{end} bound of its interval") for end in ("low", "high")]
        self._envs = {field: self._gauge(f"env_{name}", text, "env") for field, name, text in ENVIRONMENT}
        self._eval = {field: self._gauge(f"eval_{name}", text, "split") for field, name, text in EVALUATION}
        self._eval_failed = self._gauge("eval_failed_envs", "Environments left out of the last evaluation", "split")
        self._cohorts = self._intervals("cohort")
        self._known_cohorts: set[str] = set()
        self._env_success = self._intervals("env")
        self._update = self._gauge("update", "What the learner measured, by name", "measure")
        self._update_s = self._gauge("update_seconds", "Seconds of the last update by phase", "phase")
        self._bias = self._gauge("selection_bias_std", "How far trained episodes are from played ones", "field")
        self._limits = self._gauge("limit", "Bounds of the configuration that alerts compare with", "limit")
        self._phases = self._histogram("iteration_phase_seconds", "Seconds of an iteration by phase", "phase", PHASES)
        self._transfer = self._histogram("weight_transfer_seconds", "Seconds by part of a transfer", "part", _TRANSFER)
        self._count()
        self._see()

    def _count(self) -> None:
        """What only grows; a label that is known beforehand begins at 0, so that its first increase is one."""
        self._env_episodes = self._counter("env_episodes", "Episodes by environment and end", "env", "state")
        self._episodes = self._counter("episodes", "Episodes by end", "state")
        self._groups = self._counter("groups", "Groups the learner took, by what became of them", "state")
        self._verdicts = self._counter(
            "filter_verdicts", "Groups by the filter's reason to keep or drop them", "reason"
        )
        self._tokens = self._counter("tokens", "Sampled tokens")
        self._restarts = self._counter("restarts", "Restarted processes", "where")
        self._nonfinite = self._counter("nonfinite", "Values that were not finite", "where")
        self._spans = self._counter("spans", "Spans of traced episodes, by what became of them", "state")
        for counter, labels in ((self._restarts, RESTARTS), (self._groups, GROUPS), (self._episodes, EPISODES)):
            for label in labels:
                counter.labels(label)
        self._nonfinite.labels("learner")
        self._cumulative: dict[str, int] = {}

    def _see(self) -> None:
        """What the parts of the system are now."""
        self._engine_up = self._gauge("engine_up", "Whether the engine is in rotation", "engine")
        self._engine_version = self._gauge("engine_policy_version", "Policy version the engine serves", "engine")
        self._workers = self._gauge("workers_up", "Workers that run")
        self._ledger = self._gauge("ledger_episodes", "Episodes by ledger state", "state")
        self._issued = self._gauge("ledger_issued_episodes", "Episodes issued since the run began")
        self._imbalance = self._gauge("ledger_imbalance_episodes", "Issued episodes that are in no state, or in two")
        self._unsaved = self._gauge("unsaved_updates", "Updates that no checkpoint holds")
        self._progress = self._gauge(
            "last_progress_timestamp_seconds", "When an iteration or an evaluation was last finished, or training began"
        )
        self._saved = self._gauge(
            "last_checkpoint_timestamp_seconds", "When a checkpoint was last written, or training began"
        )

    def begin(self, limits: Mapping[str, float]) -> None:
        """Training begins; `limits` by name."""
        _set_labelled(self._limits, limits)
        self._progress.set(time.time())
        self.saved()

    def saved(self) -> None:
        """A checkpoint was written."""
        self._saved.set(time.time())
        self._unsaved.set(0)

    def iteration(self, record: IterationRecord) -> None:
        """Show a finished iteration and add up what it counted."""
        self._progress.set(time.time())
        self._count_nonfinite(record)
        for field, gauge in self._iteration.items():
            _set(gauge, read(record, field))
        if record.success is not None and math.isfinite(record.success):
            bounds = wilson_interval(round(record.success * record.episodes), record.episodes)
            for gauge, bound in zip(self._success, bounds, strict=True):
                gauge.set(bound)
        for counter, fields in ((self._groups, GROUPS), (self._episodes, EPISODES)):
            for label, field in fields.items():
                counter.labels(label).inc(read(record, field))
        self._tokens.inc(record.tokens)
        self._count_restarts({part: read(record, field) for part, field in RESTARTS.items()})
        self._nonfinite.labels("learner").inc(self._growth("nonfinite_total", record.nonfinite_total))
        for reason, count in record.verdicts.items():
            self._verdicts.labels(reason).inc(count)
        _set_labelled(self._update, record.update)
        _set_labelled(self._update_s, record.update_s)
        _set_labelled(self._bias, record.selection_bias)
        _observe(self._phases, {phase: read(record, field) for phase, field in PHASES.items()})
        _observe(self._transfer, record.transfer_s)
        self._set_cohorts("rollouts", record.cohorts)
        self._set_envs(record)
        _set_labelled(self._ledger, record.ledger)

    def evaluation(self, record: EvalRecord) -> None:
        """Show the last evaluation of a split."""
        self._progress.set(time.time())
        self._count_nonfinite(record)
        for field, gauge in self._eval.items():
            _set_labelled(gauge, {record.split: read(record, field)})
        self._eval_failed.labels(record.split).set(len(record.failed))
        self._set_cohorts(record.split, record.cohorts)
        for name, found in record.envs.items():
            _set_interval(self._env_success, (record.split, name), found)

    def system(self, view: SystemView) -> None:
        """Show what the parts are now."""
        for index, version in view.engines.items():
            self._engine_up.labels(str(index)).set(version is not None)
            if version is not None:
                self._engine_version.labels(str(index)).set(version)
        self._workers.set(view.workers)
        self._count_restarts(view.restarts)
        for state, total in view.spans.items():
            self._spans.labels(state).inc(self._growth(f"spans {state}", total))
        depth, balance = view.depth, view.balance
        for field, value in (
            ("buffer_groups", depth.ready_groups),
            ("buffer_bytes", depth.bytes),
            ("buffer_oldest_s", depth.oldest_ready_s),
            ("groups_open", depth.open_groups),
            ("groups_unsettled", depth.applied_groups),
        ):
            _set(self._iteration[field], value)
        _set_labelled(self._ledger, {str(state): count for state, count in balance.counts.items()})
        self._issued.set(balance.issued_total)
        self._imbalance.set(balance.missing)
        self._unsaved.set(view.unsaved_updates)

    def _set_envs(self, record: IterationRecord) -> None:
        """The names are those of the configuration, so they are few."""
        for name, found in record.envs.items():
            for label, field in EPISODES.items():
                self._env_episodes.labels(name, label).inc(read(found, field))
            interval = (found.success, found.success_low, found.success_high)
            for gauge, value in zip(self._env_success, interval, strict=True):
                if value is not None:
                    gauge.labels("rollouts", name).set(value)
            for field, gauge in self._envs.items():
                _set_labelled(gauge, {name: read(found, field)})

    def _set_cohorts(self, split: str, cohorts: Mapping[str, CohortSuccess]) -> None:
        """Only the first `MAX_COHORTS` names of a run become labels: an environment may make names without end."""
        rest = []
        for name, found in cohorts.items():
            if name != OTHER and (name in self._known_cohorts or len(self._known_cohorts) < MAX_COHORTS):
                self._known_cohorts.add(name)
                _set_interval(self._cohorts, (split, name), found)
            else:
                rest.append(found)
        if rest:
            _set_interval(self._cohorts, (split, OTHER), together(rest))

    def _count_nonfinite(self, record: Record) -> None:
        for field in record.__struct_fields__:
            value = getattr(record, field)
            if isinstance(value, float) and not math.isfinite(value):
                self._nonfinite.labels(field).inc()

    def _count_restarts(self, restarts: Mapping[str, int]) -> None:
        for part, total in restarts.items():
            self._restarts.labels(part).inc(self._growth(part, total))

    def _growth(self, what: str, total: int) -> int:
        grown = max(0, total - self._cumulative.get(what, 0))
        self._cumulative[what] = total
        return grown

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(PREFIX + name, text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, label: str, values: Iterable[str]) -> Histogram:
        histogram = Histogram(PREFIX + name, text, [label], buckets=SECONDS, registry=self.registry)
        for value in values:
            histogram.labels(value)
        return histogram

    def _intervals(self, what: str) -> list[Gauge]:
        """Success and the bounds of its interval, by split and by `what`."""
        where = "in the last evaluation of a split or the last iteration's rollouts"
        ends = {"": f"Success by {what}, {where}", "_low": "Lower bound, 95 % Wilson", "_high": "Upper bound"}
        return [self._gauge(f"{what}_success{end}_ratio", text, "split", what) for end, text in ends.items()]


def _set(gauge: Gauge, value: Number) -> None:
    if value is not None and math.isfinite(value):
        gauge.set(value)


def _set_labelled(gauge: Gauge, values: Mapping[str, Number]) -> None:
    for label, value in values.items():
        if value is not None and math.isfinite(value):
            gauge.labels(label).set(value)


def _set_interval(gauges: list[Gauge], labels: tuple[str, str], found: CohortSuccess) -> None:
    for gauge, value in zip(gauges, (found.success, found.success_low, found.success_high), strict=True):
        gauge.labels(*labels).set(value)


def _observe(histogram: Histogram, seconds: Mapping[str, Number]) -> None:
    for label, value in seconds.items():
        if value is not None and math.isfinite(value):
            histogram.labels(label).observe(value)
