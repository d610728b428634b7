"""What people and Prometheus see of a run: one reporter that feeds the live view, metrics, status file and report."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from milepost.cluster.base.exits import Exit
from milepost.cluster.evaluate import evaluate, record
from milepost.cluster.preflight import basis_of_credit
from milepost.cluster.replay.ready import Taken
from milepost.cluster.runlog.console import LiveView
from milepost.cluster.runlog.group_log import GroupLog
from milepost.cluster.runlog.iteration_record import Clock, PolicyChecks, SystemState, iteration_record
from milepost.cluster.runlog.metrics import Metrics
from milepost.cluster.runlog.records import Record, iterations, read_records
from milepost.cluster.runlog.report import write_report
from milepost.cluster.runlog.runs import RunFolder, Status
from milepost.cluster.runlog.series import SystemView
from milepost.cluster.runlog.wasted import last_word, nothing_learnt
from milepost.cluster.settings.overrides import leaves
from milepost.cluster.system import System
from milepost.cluster.tracing.tracing import Tracing
from milepost.cluster.trackers.trackers import Trackers
from milepost.cluster.trajectories.judgement import judgements
from milepost.cluster.trajectories.recorder import Recorder
from milepost.cluster.watch import Watch, limits_of
from milepost.learner.loop import UpdateReport

logger = logging.getLogger(__name__)
_SAY_EVERY_S = 60.0
_LOOK_EVERY_S = 2.0


class Reporter:
    """Tells everybody what the driver does. Never decides anything."""

    def __init__(self, system: System, view: LiveView, metrics: Metrics, watch: Watch) -> None:
        self._system = system
        system.note = self.note
        self._view = view
        self._metrics = metrics
        self._watch = watch
        self._folder: RunFolder = system.folder
        self._iterations = system.config.run.iterations
        self._iteration = 0
        self._nonfinite = 0
        self._failed = 0
        self._began = self._said_at = time.monotonic()
        self._broken: set[str] = set()
        self._recorder: Recorder | None = None
        self._tracing: Tracing | None = None
        self._trackers = Trackers(system.config.trackers)

    @contextlib.contextmanager
    def measuring(self, what: str) -> Iterator[None]:
        """Around what is only computed, written or shown for people: what it raises is said once and goes no further.

        An Exit passes: it says that the run cannot go on.
        """
        try:
            yield
        except Exit:
            raise
        except Exception as error:
            logger.warning("%s failed", what, exc_info=error)
            if what not in self._broken:
                self._broken.add(what)
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                self._view.note(f"{what} failed ({reason}); training goes on without it, the log has the details")

    def record_trajectories(self, policy: Path) -> None:
        """Record every episode from here on, with the tokenizer of the model folder `policy`."""
        config = self._system.config
        if config.trajectories.max_bytes:
            self._recorder = Recorder(
                self._folder.trajectories,
                policy=policy,
                max_bytes=config.trajectories.max_bytes,
                group_size=config.run.group_size,
                strategy=config.credit.strategy,
            )
            self._system.record = self._recorder.add
            if config.tracing.endpoint:
                self._tracing = Tracing(config.tracing, self._folder.run_id)
                self._recorder.follow(self._tracing.episode)

    def track(self, iteration: int) -> None:
        """Tell the trackers of the configuration what is measured from `iteration` on."""
        self._trackers.begin(self._folder, dict(leaves(self._system.config.model_dump(mode="json"))), iteration)

    def consumed(self, taken: Taken, report: UpdateReport, log: GroupLog) -> None:
        """What became of the groups of an update, for the logs and the meter of selection bias."""
        groups = [leased.group for leased in taken.groups]
        with self.measuring("the log of groups"):
            log.add(groups)
        with self.measuring("the meter of selection bias"):
            self._watch.handled(groups, report.verdicts)
        with self.measuring("the record of trajectories"):
            if self._recorder is not None:
                self._recorder.judge(judgements(taken, report))
                for group_id, reason in taken.undecodable:
                    self._recorder.end(group_id, "dead_letter", reason)
        self._say_problems()

    def rolled_back(self, version: int) -> None:
        """The run goes on from policy `version`."""
        if self._recorder is not None:
            self._recorder.undo(version)

    def _say_problems(self) -> None:
        """Say once what is not recorded, traced or tracked any more."""
        beside = [part.problem for part in (self._recorder, self._tracing) if part is not None]
        for problem in filter(None, [*beside, *self._trackers.problems]):
            if problem not in self._broken:
                self._broken.add(problem)
                self.note(problem)

    def activity(self, text: str) -> None:
        """What goes on inside an iteration."""
        self._said_at = time.monotonic()
        self._view.activity(text)

    def waiting(self, text: str) -> None:
        """How far an activity has come that takes long: on the live panel, and once a minute as a line that stays."""
        self._view.activity(text)
        if time.monotonic() - self._said_at > _SAY_EVERY_S:
            self._said_at = time.monotonic()
            self.note(text)

    def phase(self, text: str) -> None:
        """A new phase of the run begins."""
        logger.info("%s", text)
        self._view.phase(text)
        self._write_status(text)

    def remark(self, text: str) -> None:
        """As `note`, of something that is in order."""
        logger.info("%s", text)
        self._view.note(text)

    def warn(self, text: str) -> None:
        """As `note`, of something that the user may want to mend: it begins with `warning: `."""
        self.note(f"warning: {text}")

    def note(self, text: str) -> None:
        """One line that stays on the screen and in the log."""
        logger.warning("%s", text)
        self._view.note(text)

    async def training_begins(self, iteration: int) -> None:
        """Say what credit goes by; from here on seconds count, and failed episodes."""
        basis = await asyncio.to_thread(basis_of_credit, self._system.config, self._system.scenarios)
        if basis is not None:
            self.remark(basis)
        self._iteration = iteration
        self._failed = (await self._system.ledger.balance()).failed
        self._began = time.monotonic()
        self._metrics.begin(limits_of(self._system.config))
        self.phase("training")

    async def watch_system(self, unsaved_updates: Callable[[], int]) -> None:
        """Show Prometheus what the parts are, every few seconds and without end, also while an iteration waits."""
        system = self._system
        while True:
            with self.measuring("the state of the parts"):
                view = SystemView(
                    engines=system.engines.served,
                    workers=system.workers.running,
                    restarts=self._restarts(),
                    depth=await system.buffer.depth(),
                    balance=await system.ledger.balance(),
                    unsaved_updates=unsaved_updates(),
                    spans=self._tracing.counts if self._tracing else {},
                )
                self._metrics.see(view)
            await asyncio.sleep(_LOOK_EVERY_S)

    def _restarts(self) -> dict[str, int]:
        system = self._system
        return {
            "engine": system.engines.restarts,
            "worker": system.workers.restarts,
            "learner": system.learners.restarts,
        }

    def saved(self) -> None:
        """A checkpoint was written."""
        self._metrics.saved()

    @property
    def seconds(self) -> float:
        """Since training began."""
        return time.monotonic() - self._began

    async def iteration(
        self, taken: Taken, report: UpdateReport, clock: Clock, iteration: int, checks: PolicyChecks
    ) -> None:
        """One iteration is done; what it measured beside itself is in `checks`."""
        system = self._system
        groups = [leased.group for leased in taken.groups]
        depth, balance = await system.buffer.depth(), await system.ledger.balance()
        failures = await system.buffer.take_failures()  # the last call that may fail: what follows happens once
        if not balance.holds:
            raise AssertionError(f"the ledger does not balance: {balance}")
        self._nonfinite += report.skipped_steps
        failed = balance.failed
        fresh, self._failed, self._iteration = max(0, failed - self._failed), failed, iteration
        bias: dict[str, float] = {}
        with self.measuring("the meter of selection bias"):
            self._watch.lost(taken.stale, failures)
            bias = self._watch.selection_bias
        with self.measuring("the record of an iteration"):
            state = SystemState(
                time_s=self.seconds,
                depth=depth,
                groups_stale=len(taken.stale),
                episodes_failed=fresh,
                nonfinite_total=self._nonfinite,
                engines_serving=len(system.engines.handles),
                **{f"{part}_restarts": count for part, count in self._restarts().items()},
                ledger={str(state): count for state, count in balance.counts.items()},
                selection_bias=bias,
                failures=[failure for failure, _ in failures],
            )
            line = iteration_record(groups, report, iteration=iteration, clock=clock, state=state, checks=checks)
            self._metrics.record(line)
            self._trackers.record(line)
            self._view.update(line)
            for finding in self._watch.iteration(line):
                self.warn(finding)
        self._write_status("training")

    async def evaluation(self, iteration: int, version: int) -> None:
        """Evaluate on every configured split that holds scenarios."""
        run = self._system.config.run
        episodes = run.eval_episodes
        for split in run.eval_splits:
            if not episodes or not list(self._system.scenarios.tasks(split)):
                continue
            self.phase(f"evaluating {split}")
            summary = await evaluate(self._system, split, episodes)
            with self.measuring("the record of an evaluation"):
                line = record(summary, split=split, iteration=iteration, version=version, time_s=self.seconds)
                for name, error in line.failed.items():
                    self.note(f"environment {name} is left out of the evaluation on {split}: {error}")
                self._metrics.record_eval(line)
                self._trackers.record(line)
                self._view.update_eval(line)
                for finding in self._watch.evaluation(line):
                    self.warn(finding)

    def finished(self, how: str) -> str | None:
        """Write the report, show the summary and what remains to be said; returns why nothing was learnt, if so.

        Where that fails, the end keeps its reason.
        """
        self._write_status(how)
        records: list[Record] = []
        with self.measuring("the record of trajectories"):
            self._end_recording()
        self._trackers.close()
        self._say_problems()
        with self.measuring("the report"):
            try:
                records = read_records(self._folder.metrics)
            except Exit as damaged:
                self.note(f"no report: {damaged}")
            if records:
                write_report(self._folder)
                self._view.finish(records, self._folder)
        why = nothing_learnt(iterations(records), self._watch.limits)
        for sign in [] if why else last_word(iterations(records), self._watch.limits):
            self.warn(f"at the end {sign}")
        return why

    def _end_recording(self) -> None:
        if self._recorder is not None:
            self._recorder.close()
            if self._recorder.lost:
                self.note(f"{self._recorder.lost} episodes are not among the recorded trajectories: no room on the way")
        if self._tracing is not None:
            self._tracing.close()

    def _write_status(self, phase: str) -> None:
        ports = {"metrics": self._metrics.port, **self._system.metrics_ports}
        status = Status(
            pid=os.getpid(),
            phase=phase,
            iteration=self._iteration,
            iterations=self._iterations,
            ports=ports,
        )
        with self.measuring("the status file"):
            self._folder.write_status(status)
