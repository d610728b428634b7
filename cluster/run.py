"""The whole system on one page: start the parts, train, publish, watch, stop.

    workers ── episodes ──> buffer ── groups ──> learner ── weights ──> engines
       ^                      |                     |                      |
       └── ledger admits ─────┴── commit, settle ───┴── checkpoint         └── sample for workers

One iteration: take groups (workers go on playing as far as `max_staleness` allows) -> update -> checkpoint if due ->
commit -> publish. A crash between any two of these loses nothing and trains nothing twice; tests kill each part to see.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from milepost.cluster.base.exits import DependencyLost, Diverged, Stopped, WatchdogExpired
from milepost.cluster.guidance import Guidance
from milepost.cluster.policy_checks import check_policy
from milepost.cluster.pools.learners import LearnerLost
from milepost.cluster.preflight import check_world
from milepost.cluster.replay.ready import FinalState, NothingReady, Taken
from milepost.cluster.replay.redis_server import BufferRefused, BufferUnavailable
from milepost.cluster.reporter import Reporter
from milepost.cluster.runlog.console import LiveView
from milepost.cluster.runlog.group_log import GroupLog
from milepost.cluster.runlog.iteration_record import Clock
from milepost.cluster.runlog.metrics import Metrics
from milepost.cluster.runlog.records import read_records
from milepost.cluster.runlog.runs import RunFolder
from milepost.cluster.settings.config import RunConfig
from milepost.cluster.start import Start, newest_checkpoint
from milepost.cluster.system import System, learner_spec
from milepost.cluster.watch import Watch
from milepost.learner.zero import checkpoint

logger = logging.getLogger(__name__)
T = TypeVar("T")
_TEND_EVERY_S = 1.0
_TAKE_SLICE_S = 2.0
_STEP_SHARE_OF_GRACE = 0.5


class Run:
    """One training run from start to stop."""

    def __init__(self, config: RunConfig, folder: RunFolder, view: LiveView, metrics: Metrics) -> None:
        self._config = config
        self._folder = folder
        self._system = System(config, folder, check_world(config))
        self._watch = Watch(config, read_records(folder.metrics))
        self.reporter = Reporter(self._system, view, metrics, self._watch)
        self._group_log = GroupLog(folder.groups)
        self._stopping = asyncio.Event()
        self._iteration = 0
        self._version = 0
        self._saved: int | None = None
        """Version of the newest checkpoint."""
        self._unsettled_bytes = 0
        """What was consumed since; it stays in the buffer until the next one."""
        self._in_step = False
        """Whether stopping now would waste a step that a moment's patience saves."""

    def stop(self) -> None:
        """Ask for an orderly stop: finish the step under way, checkpoint, leave."""
        self._stopping.set()

    async def main(self, start: Start) -> None:
        """Everything, from `start` to the end. Raises an Exit unless the run finishes."""
        work = asyncio.create_task(self._work(start))
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            if self._in_step:
                await asyncio.wait({work}, timeout=_STEP_SHARE_OF_GRACE * self._config.run.stop_grace_s)
            if not work.done():
                raise Stopped(f"stopped; {self._way_on()}")
            work.result()
        finally:
            for task in (work, stop):
                task.cancel()
            await asyncio.gather(work, stop, return_exceptions=True)
            self.reporter.phase("stopping")
            await self._system.stop()

    def _way_on(self) -> str:
        if self._saved is None:
            return "nothing was trained yet" if self._version == 0 else "no checkpoint was written yet"
        here = os.path.relpath(self._folder.path)
        return f"the newest checkpoint is of version {self._saved}: milepost train --resume {here}"

    async def _work(self, start: Start) -> None:
        """Start, then train while the parts are tended; the first failure of either ends both."""
        self._iteration, self._version = start.iteration, start.version
        learner = learner_spec(self._config, self._folder, start.policy, start.reference)
        await self._system.start(start.policy, start.version, learner=learner, phase=self.reporter.phase)
        self._guidance = Guidance.of(self._system, self._watch)
        if start.found:
            await self._system.learners.load(start.found.path)
        await self._patiently(lambda: self._reconcile(start.found))
        ledger = self._system.ledger
        await self._patiently(lambda: ledger.set_versions(published=self._version))  # the engines started on it
        await self._patiently(ledger.release_all)
        training = asyncio.create_task(self._train())
        tending = asyncio.create_task(self._tend())
        try:
            done, _ = await asyncio.wait({training, tending}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (training, tending):
                task.cancel()
            await asyncio.gather(training, tending, return_exceptions=True)

    async def _train(self) -> None:
        if self._iteration == 0:
            await self.reporter.evaluation(self._iteration, self._version)
        self._system.workers.roll()
        await self._patiently(lambda: self.reporter.training_begins(self._iteration))
        self._in_step = True
        while self._in_step:
            try:
                if self._iteration < self._config.run.iterations and not self._stopping.is_set():
                    await self._iterate()
                else:
                    await self._checkpoint({})
                    self._in_step = False
            except LearnerLost as lost:
                await self._recover(lost)
        if self._stopping.is_set():
            raise Stopped(f"stopped after iteration {self._iteration}; {self._way_on()}")
        await self._patiently(self._system.ledger.pause)
        await self.reporter.evaluation(self._iteration, self._version)

    async def _iterate(self) -> None:
        """One update, from taking groups to publishing the weights they made."""
        started = time.monotonic()
        taken = await self._take()
        if taken is None:
            return
        groups = [leased.group for leased in taken.groups]
        took = time.monotonic()
        self.reporter.activity("training")
        busy = await self._busy_s()
        options = await self._patiently(lambda: self._guidance.options(groups, self._version))
        report = await self._system.learners.train(groups, self._version, options)
        trained = time.monotonic()
        overlap = await self._busy_s() - busy
        outcomes: dict[str, FinalState] = {
            leased.group_id: "trained" if verdict.keep else "filtered"
            for leased, verdict in zip(taken.groups, report.verdicts, strict=True)
        }
        self._iteration += 1
        self._version += 1
        self._unsettled_bytes += sum(leased.num_bytes for leased in taken.groups)
        is_due = self._iteration % self._config.run.checkpoint_every == 0
        if is_due or self._unsettled_bytes > self._config.buffer.consumed_bytes_limit:
            await self._checkpoint(outcomes)
        await self._patiently(lambda: self._system.buffer.commit(self._version, outcomes))
        self._group_log.add(groups)
        await self._patiently(lambda: self._guidance.remember(groups, self._version))
        self._watch.handled(groups, report.verdicts)
        logger.info("version %d consumed %s", self._version, ", ".join(outcomes))
        if self._saved == self._version:
            await self._patiently(lambda: self._guidance.settle(self._version))
        publishing = time.monotonic()
        self.reporter.activity("publishing weights")
        await self._publish()
        checks = await check_policy(self._system, groups, self._version, iteration=self._iteration)
        ended = time.monotonic()
        clock = Clock(
            total_s=self.reporter.seconds,
            wall_s=ended - started,
            wait_s=took - started,
            train_s=trained - took,
            publish_s=ended - publishing,
            overlap_s=min(max(overlap, 0.0), trained - took),  # an engine that was replaced counts from 0
        )
        await self._patiently(lambda: self.reporter.iteration(taken, report, clock, self._iteration, checks))
        await self._give_up_on_collapse()
        every = self._config.run.eval_every
        if every and self._iteration % every == 0 and self._iteration < self._config.run.iterations:
            await self.reporter.evaluation(self._iteration, self._version)
            self.reporter.phase("training")

    async def _take(self) -> Taken | None:
        """Groups for one update, or None if a stop came first. Raises WatchdogExpired naming who is missing."""
        run = self._config.run
        deadline = time.monotonic() + run.stall_timeout_s
        self.reporter.activity("waiting for groups")
        while not self._stopping.is_set():
            try:
                return await self._system.buffer.take(
                    run.groups_per_iteration,
                    version=self._version,
                    max_staleness=run.max_staleness,
                    timeout_s=_TAKE_SLICE_S,
                )
            except (NothingReady, BufferUnavailable) as missing:
                await self._make_room()
                if time.monotonic() > deadline:
                    raise WatchdogExpired(
                        f"no update for run.stall_timeout_s = {run.stall_timeout_s:g}: {missing}"
                    ) from None
        return None

    async def _make_room(self) -> None:
        """Settle what was consumed, by a checkpoint, where the buffer is so full that nothing is issued."""
        if self._unsettled_bytes:
            depth = await self._patiently(self._system.buffer.depth)
            if depth.bytes >= self._config.buffer.high_water_bytes:
                await self._checkpoint({})

    async def _publish(self, *, rollback: bool = False) -> None:
        weights = await self._system.learners.delivery(self._version)
        await self._system.engines.publish(weights, rollback=rollback)
        await self._patiently(lambda: self._system.ledger.set_versions(published=self._version))
        self._system.weights.keep_only(self._version)

    async def _give_up_on_collapse(self) -> None:
        """Raises Diverged, with everything saved, where the watch's rules say that nothing will come any more."""
        if (reason := self._watch.stop_reason) is not None:
            await self._checkpoint({})
            raise Diverged(f"{reason}; {self._way_on()}")

    async def _checkpoint(self, consumed: dict[str, FinalState]) -> None:
        """Save the current weights unless that was done, and settle what they consumed."""
        if self._saved == self._version:
            return
        self.reporter.activity("writing a checkpoint")
        saved = await self._system.learners.save(iteration=self._iteration, version=self._version, consumed=consumed)
        self._folder.keep_policy(saved / "policy", self._version)
        self._saved, self._unsettled_bytes = self._version, 0
        if not consumed:
            await self._patiently(lambda: self._guidance.settle(self._version))

    async def _recover(self, lost: LearnerLost) -> None:
        """Bring a lost learner back from the newest valid checkpoint, and everyone else to the same point."""
        self.reporter.note(f"learner lost ({lost}); starting it again from the newest checkpoint")
        await self._patiently(self._system.ledger.pause)
        found = newest_checkpoint(self._folder, self.reporter)
        await self._system.learners.recover(found.path if found else None)
        self._iteration = found.manifest.record.iteration if found else 0
        self._version = found.manifest.record.policy_version if found else 0
        await self._patiently(lambda: self._reconcile(found))
        await self._publish(rollback=True)
        await self._patiently(self._system.ledger.resume)  # not before: the engines held weights that are undone

    async def _reconcile(self, found: checkpoint.Found | None) -> None:
        """Make ledger and checkpoint agree: what the checkpoint consumed is settled, what came later is undone."""
        buffer, ledger = self._system.buffer, self._system.ledger
        self._saved, self._unsettled_bytes = self._version if found else None, 0
        logger.info("history goes on from version %d", self._version)
        before = await ledger.version()
        if (await ledger.balance()).issued_total == 0:
            await ledger.set_versions(version=self._version)
            return
        if before > self._version:
            await buffer.rollback(self._version)
        elif found and before < self._version:
            await buffer.commit(self._version, msgspec.convert(found.manifest.record.consumed, dict[str, FinalState]))
        buffer.redeliver()
        await buffer.settle(self._version)

    async def _tend(self) -> None:
        while True:
            await self._patiently(self._system.tend)
            await asyncio.sleep(_TEND_EVERY_S)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call while Redis is away (each of ours may be repeated).

        Raises DependencyLost at the deadline, or where Redis answers and refuses.
        """
        deadline = time.monotonic() + self._config.run.stall_timeout_s
        while True:
            try:
                return await call()
            except BufferUnavailable as error:
                if time.monotonic() > deadline:
                    raise DependencyLost(f"Redis is away for run.stall_timeout_s: {error}") from error
                await asyncio.sleep(_TEND_EVERY_S)
            except BufferRefused as error:
                raise DependencyLost(str(error)) from error

    async def _busy_s(self) -> float:
        return max(await self._system.engines.probe(), default=0.0)
