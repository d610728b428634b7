"""The whole system on one page: start the parts, train, publish, watch, stop.

    workers ── episodes ──> buffer ── groups ──> learner ── weights ──> engines
       ^                      |                     |                      |
       └── ledger admits ─────┴── commit, settle ───┴── checkpoint         └── sample for workers

One iteration: take groups (workers go on playing as far as `max_staleness` allows) -> update -> checkpoint if due ->
commit -> publish, whose end the next iteration need not wait for (`publication.py`). `recovery.py` says what a crash
between any two of these leaves; tests kill each part to see.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from milepost.cluster.base.deadline import unless
from milepost.cluster.base.exits import Diverged, Stopped
from milepost.cluster.histories import GroupHistories
from milepost.cluster.pools.learners import LearnerLost
from milepost.cluster.pools.weights import Asked, ask
from milepost.cluster.preflight import check_world
from milepost.cluster.recovery import Progress, Recovery, let_step_end
from milepost.cluster.replay.ready import LeasedGroup
from milepost.cluster.reporter import Reporter
from milepost.cluster.runlog.console import LiveView
from milepost.cluster.runlog.group_log import GroupLog
from milepost.cluster.runlog.iteration_record import Clock, PolicyChecks
from milepost.cluster.runlog.metrics import Metrics
from milepost.cluster.runlog.records import read_records
from milepost.cluster.runlog.runs import RunFolder
from milepost.cluster.settings.config import RunConfig
from milepost.cluster.start import Start
from milepost.cluster.system import System, learner_spec
from milepost.cluster.take import take_groups
from milepost.cluster.watch import Watch
from milepost.envs.types import Group
from milepost.learner.health.repetition import repetition
from milepost.learner.timing import timed

_PROMPTS = 4
"""Of the last groups, that engines answer for parity."""


class Run:
    """One training run from start to stop."""

    def __init__(self, config: RunConfig, folder: RunFolder, view: LiveView, metrics: Metrics) -> None:
        self._config = config
        self._system = System(config, folder, check_world(config))
        self._watch = Watch(config, read_records(folder.metrics))
        self.reporter = Reporter(self._system, view, metrics, self._watch)
        self._group_log = GroupLog(folder.groups)
        self.progress = Progress(folder)
        self._stopping = asyncio.Event()
        self._groups: Sequence[LeasedGroup] = ()
        """Of the last update."""
        self._in_step = False
        """Whether stopping now would waste a step that a moment's patience saves."""

    def stop(self) -> None:
        """Ask for an orderly stop: finish the step under way, checkpoint, leave."""
        self._stopping.set()

    async def main(self, start: Start) -> None:
        """Everything, from `start` to the end. Raises an Exit unless the run finishes."""
        work, stop = asyncio.create_task(self._work(start)), asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            if self._in_step:
                await let_step_end(work, self._config.run.step_patience_s, self.progress, self.reporter)
            if not work.done():
                raise Stopped(f"stopped; {self.progress.way_on}")
            work.result()
        finally:
            await _end(work, stop)
            self.reporter.phase("stopping")
            await self._system.stop()

    async def _work(self, start: Start) -> None:
        """Start, then train while the parts are tended; the first failure of either ends both."""
        system = self._system
        self.progress.iteration, self.progress.version = start.iteration, start.version
        self.reporter.record_trajectories(start.policy)
        self.reporter.track(start.iteration)
        learner = learner_spec(self._config, system.folder, start.policy, start.first)
        await system.start(start.policy, start.version, learner=learner, phase=self.reporter.phase)
        self._histories = GroupHistories.of(system)
        self._recovery = Recovery(system, self.reporter, self.progress, self._histories)
        await self._recovery.begin(start)
        training, tending = asyncio.create_task(self._train()), asyncio.create_task(system.tend())
        watching = asyncio.create_task(self.reporter.watch_system(lambda: self.progress.unsaved))
        try:
            done, _ = await asyncio.wait({training, tending, watching}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except Exception as end:
            await self._recovery.save_before(end, training)
            raise
        finally:
            await _end(training, tending, watching)

    async def _train(self) -> None:
        if self.progress.iteration == 0:
            await self._evaluate()
        self._system.workers.roll()
        await self.reporter.training_begins(self.progress.iteration)
        self._in_step = True
        while self._in_step:
            try:
                if self.progress.iteration < self._config.run.iterations and not self._stopping.is_set():
                    await self._iterate()
                else:
                    await self._recovery.checkpoint()
                    self._in_step = False
            except LearnerLost as lost:
                await self._recovery.recover(lost)
        if self._stopping.is_set():
            raise Stopped(f"stopped after iteration {self.progress.iteration}; {self.progress.way_on}")
        await self._system.ledger.pause()
        await self._evaluate()

    async def _iterate(self) -> None:
        """One update, from taking groups to publishing the weights they made."""
        system, progress, clock = self._system, self.progress, Clock()
        self.reporter.activity("waiting for groups")
        measuring = asyncio.create_task(self._information())  # the learner is free until groups are there
        try:
            with timed(clock.seconds, "wait"):
                taken = await take_groups(
                    system, self._recovery, progress.version, self._stopping, self.reporter.waiting
                )
            if taken is None:
                return
            await system.engines.sleep()
            with timed(clock.seconds, "check"):
                information = await measuring
        finally:
            await _end(measuring)
        groups = [leased.group for leased in taken.groups]
        with timed(clock.seconds, "train"):
            busy = await system.engines.busy_s()
            options = self._watch.options(await self._histories.fetch(groups, progress.version))
            asked = self._ask(taken.groups) if self._config.run.max_staleness else []  # else all are of this version
            report, repeated = await asyncio.gather(
                self._recovery.train(taken, options, asked), self._repetition(groups)
            )
            clock.overlap_s = await system.engines.busy_s() - busy
        with timed(clock.seconds, "commit"):
            await self._recovery.consume(taken, report.verdicts)
            self.reporter.consumed(taken, report, self._group_log)
        self._groups = taken.groups
        self.reporter.activity("publishing weights")
        with timed(clock.seconds, "publish"):
            await system.publisher.publish(progress.version)
        clock.transfer_s, clock.publish_bytes = system.publisher.seconds, system.publisher.num_bytes
        checks = PolicyChecks(information=information, repetition=repeated)
        await self.reporter.iteration(taken, report, clock, progress.iteration, checks)
        await self._give_up_on_collapse()
        every = self._config.run.eval_every
        if every and progress.iteration % every == 0 and progress.iteration < self._config.run.iterations:
            await unless(self._stopping, self._evaluate())
            self.reporter.phase("training")

    def _ask(self, groups: Sequence[LeasedGroup]) -> Asked:
        """What engines sample with the current version, for parity: each answers a few first prompts of `groups`."""
        prompts = [list(leased.group.trajectories[0].turns[0].prompt_ids) for leased in groups[:_PROMPTS]]
        return ask(self._system.engines.handles, prompts, self.progress.version)

    async def _evaluate(self) -> None:
        """Evaluate weights that the engines were seen to serve. Raises Diverged if parity is broken."""
        await self._system.publisher.arrived()
        await self._system.learners.check_parity(self._ask(self._groups), self.progress.version)
        await self.reporter.evaluation(self.progress.iteration, self.progress.version)

    async def _information(self) -> float | None:
        """Mutual information of the last update's prompts and responses, if it is due in the iteration that begins."""
        every = self._config.collapse.information_every
        if not every or not self._groups or (self.progress.iteration + 1) % every:
            return None
        await self._system.engines.asleep.wait()
        with self.reporter.measuring("mutual information"):
            return await self._system.learners.mutual_information([leased.encoded for leased in self._groups])
        return None

    async def _repetition(self, groups: Sequence[Group]) -> float | None:
        """How much the responses of `groups` repeat each other, off the event loop: it looks at every token."""
        said = (
            ((group.group_id, turn.anchor), turn.response_ids)
            for group in groups
            for trajectory in group.trajectories
            for turn in trajectory.turns
        )
        with self.reporter.measuring("repetition"):
            return await asyncio.to_thread(repetition, said)
        return None

    async def _give_up_on_collapse(self) -> None:
        """Raises Diverged, with everything saved, where the watch's rules say that nothing will come any more."""
        if (reason := self._watch.stop_reason) is not None:
            await self._recovery.checkpoint()
            raise Diverged(f"{reason}; {self.progress.way_on}")


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
