"""What the driver makes of what it measures: early signs of collapse, rollouts that teach nothing, and
whether training still sees what is played.

Joins the pure meters of the learner with the records of a run, and turns what they find into lines for people, options
for the next update, and the reason to give up. It waits for nothing and talks to nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

from milepost.cluster.runlog.environments import FailingEnvironments
from milepost.cluster.runlog.records import EvalRecord, IterationRecord, Record
from milepost.cluster.runlog.wasted import Limits, WastedRollouts
from milepost.cluster.settings.config import RunConfig
from milepost.envs.types import Failure, Group
from milepost.learner.credit.filter import Verdict
from milepost.learner.health.collapse import CollapseWatch, Finding, HealthMetrics, Validation, tightened
from milepost.learner.health.selection_bias import TRAINED, SelectionBias, facts_of, facts_of_failure
from milepost.learner.recipe import Histories, UpdateOptions


class Watch:
    """One run under observation. What it knows of collapse follows from the records, so a resumed run goes on."""

    def __init__(self, config: RunConfig, records: Sequence[Record]) -> None:
        """`records` are those of the run before a restart."""
        self._config = config
        self._meter = SelectionBias(config.selection_bias)
        self._failing = FailingEnvironments(episodes=config.run.group_size)
        health = [_health(record) for record in records if isinstance(record, IterationRecord)]
        validations = [v for record in records if (v := _validation(record)) is not None]
        self._collapse = CollapseWatch(config.collapse, health, validations)
        self.limits = Limits(config.sampling.max_tokens, config.engine.max_model_len)
        self._wasted = WastedRollouts(self.limits)

    def handled(self, groups: Sequence[Group], verdicts: Sequence[Verdict]) -> None:
        """What became of the groups of an update."""
        for group, verdict in zip(groups, verdicts, strict=True):
            self._meter.add(facts_of(group, TRAINED if verdict.keep else verdict.reason))

    def lost(self, stale: Sequence[Group], failures: Sequence[tuple[Failure, str]]) -> None:
        """What never reached an update: groups that became stale, and failed episodes with their ledger state."""
        for group in stale:
            self._meter.add(facts_of(group, "stale"))
        for failure, state in failures:
            self._meter.add([facts_of_failure(failure, state)])

    @property
    def selection_bias(self) -> dict[str, float]:
        """How far trained episodes are from generated ones, by field, in standard deviations (cohorts: distance)."""
        return {shift.field: shift.size for shift in self._meter.shifts()}

    def iteration(self, record: IterationRecord) -> list[str]:
        """Take in a finished iteration and return what is new to say about the run."""
        found = _lines(self._collapse.observe(_health(record))) + self._meter.warnings()
        return self._wasted.iteration(record) + found + self._failing.see(record.envs)

    def evaluation(self, record: EvalRecord) -> list[str]:
        """The same for an evaluation; of collapse, only held-out tasks tell."""
        validation = _validation(record)
        found = [] if validation is None else _lines(self._collapse.validated(validation))
        return self._wasted.evaluation(record) + found

    def options(self, histories: Histories | None) -> UpdateOptions:
        """What the next update is told: task histories, and while a sign of collapse lasts what acts against it."""
        action = self._config.collapse.action if self._collapse.current() else None
        return UpdateOptions(
            histories=histories,
            filter=tightened(self._config.filter) if action == "filter" else None,
            lr_factor=self._config.collapse.lr_factor if action == "lower_lr" else 1.0,
        )

    @property
    def stop_reason(self) -> str | None:
        """Why the run is to be given up now, if it is."""
        if self._config.collapse.action != "stop":
            return None
        return next((finding.text for finding in self._collapse.current() if finding.is_stop), None)


def limits_of(config: RunConfig) -> dict[str, float]:
    """What alerts compare with, by name."""
    return {
        "staleness_versions": config.run.max_staleness,
        "parity_nats": config.learner.parity_limit,
        "buffer_bytes": config.buffer.high_water_bytes,
        "iterations": config.run.iterations,
        "checkpoint_updates": config.run.checkpoint_every,
        "engines": config.engine.num_engines,
        "workers": config.actors.num_workers,
    }


def _health(record: IterationRecord) -> HealthMetrics:
    return HealthMetrics(
        iteration=record.iteration,
        spread=record.reward_std_within,
        success=record.success,
        entropy=record.entropy,
        grad_norm=record.grad_norm,
        groups_kept=record.groups_trained,
        repetition=record.repetition,
        information=record.mutual_information,
    )


def _validation(record: Record) -> Validation | None:
    if not isinstance(record, EvalRecord) or record.split != "heldout":
        return None
    return Validation(iteration=record.iteration, success=record.success)


def _lines(findings: Sequence[Finding]) -> list[str]:
    return [finding.text for finding in findings]
