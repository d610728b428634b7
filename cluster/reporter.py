"""What people and Prometheus see of a run: one reporter that feeds the live view, metrics, status file and report."""

from __future__ import annotations

import logging
import os
import time

from milepost.cluster.evaluate import evaluate, record
from milepost.cluster.replay.ledger import Balance
from milepost.cluster.replay.ready import Taken
from milepost.cluster.runlog.console import LiveView
from milepost.cluster.runlog.iteration_record import Clock, PolicyChecks, SystemState, iteration_record
from milepost.cluster.runlog.metrics import Metrics
from milepost.cluster.runlog.records import read_records
from milepost.cluster.runlog.report import write_report
from milepost.cluster.runlog.runs import RunFolder, Status
from milepost.cluster.system import System
from milepost.cluster.watch import Watch
from milepost.learner.loop import UpdateReport

logger = logging.getLogger(__name__)
_SAY_EVERY_S = 60.0


class Reporter:
    """Tells everybody what the driver does. Never decides anything."""

    def __init__(self, system: System, view: LiveView, metrics: Metrics, watch: Watch) -> None:
        self._system = system
        self._view = view
        self._metrics = metrics
        self._watch = watch
        self._folder: RunFolder = system.folder
        self._iterations = system.config.run.iterations
        self._iteration = 0
        self._nonfinite = 0
        self._failed = 0
        self._began = self._said_at = time.monotonic()

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

    def note(self, text: str) -> None:
        """One line that stays on the screen and in the log."""
        logger.warning("%s", text)
        self._view.note(text)

    async def training_begins(self, iteration: int) -> None:
        """From here on seconds count, and failed episodes."""
        self._iteration = iteration
        self._failed = failed_of(await self._system.ledger.balance())
        self._began = time.monotonic()
        self.phase("training")

    @property
    def seconds(self) -> float:
        """Since training began."""
        return time.monotonic() - self._began

    async def iteration(
        self, taken: Taken, report: UpdateReport, clock: Clock, iteration: int, checks: PolicyChecks
    ) -> None:
        """One iteration is done; `checks` are of the version it published."""
        system = self._system
        groups = [leased.group for leased in taken.groups]
        depth = await system.buffer.depth()
        balance = await system.ledger.balance()
        failures = await system.buffer.take_failures()  # the last call that may fail: what follows happens once
        self._watch.lost(taken.stale, failures)
        self._nonfinite += report.skipped_steps
        failed = failed_of(balance)
        state = SystemState(
            time_s=self.seconds,
            depth=depth,
            groups_stale=len(taken.stale),
            episodes_failed=max(0, failed - self._failed),
            nonfinite_total=self._nonfinite,
            engine_restarts=system.engines.restarts,
            worker_restarts=system.workers.restarts,
            learner_restarts=system.learners.restarts,
            ledger={str(state): count for state, count in balance.counts.items()},
            selection_bias=self._watch.selection_bias,
        )
        self._failed = failed
        if not balance.holds:
            raise AssertionError(f"the ledger does not balance: {balance}")
        line = iteration_record(groups, report, iteration=iteration, clock=clock, state=state, checks=checks)
        self._iteration = iteration
        self._metrics.record(line)
        self._view.update(line)
        for finding in self._watch.iteration(line):
            self.note(finding)
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
            line = record(summary, split=split, iteration=iteration, version=version, time_s=self.seconds)
            self._metrics.record_eval(line)
            self._view.update_eval(line)
            for finding in self._watch.evaluation(line):
                self.note(finding)

    def finished(self, how: str) -> None:
        """Write the report and, on a finished run, show the summary. A disk that takes neither changes no reason."""
        try:
            self._write_status(how)
            records = read_records(self._folder.metrics)
            if records:
                write_report(self._folder)
                self._view.finish(records, self._folder)
        except OSError as error:
            self.note(f"no report, and no status: {error}")

    def _write_status(self, phase: str) -> None:
        ports = {"metrics": self._metrics.port}
        status = Status(
            pid=os.getpid(),
            phase=phase,
            iteration=self._iteration,
            iterations=self._iterations,
            ports=ports,
        )
        self._folder.write_status(status)


def failed_of(balance: Balance) -> int:
    """Episodes that failed since the run began."""
    return balance.counts["env_failed"] + balance.counts["infra_failed"]
