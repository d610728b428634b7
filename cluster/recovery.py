"""What a run survives on: checkpoints, what the ledger knows of them, and the way back to one.

The steps of an iteration, and what a learner or driver that dies after each of them leaves behind:

    train        the ledger has heard of nothing: the groups are taken and trained on again
    checkpoint   it names the groups it consumed, the ledger does not: `_reconcile` commits and settles them
    commit       the ledger is ahead of the newest checkpoint: `_reconcile` rolls the commit back, and the groups are
                 trained on again from the older weights; with a checkpoint of this version, they are settled
    publish      as after the commit. Where the learner alone was lost, the engines may hold weights that are undone:
                 issue is paused until they hold the checkpoint's

A Redis that was restored from a copy, or a replica that took over, may lack more updates than one: what it still holds
is dropped, and its tasks are played again.

So no group is trained on twice in the history that survives, and none is lost. Everything here may be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from milepost.cluster.base.exits import Diverged, Exit, Stopped
from milepost.cluster.histories import GroupHistories
from milepost.cluster.pools.learners import LearnerLost
from milepost.cluster.replay.client import BufferRefused
from milepost.cluster.replay.ready import FinalState, Taken
from milepost.cluster.reporter import Reporter
from milepost.cluster.runlog.runs import RunFolder
from milepost.cluster.start import Start, newest_checkpoint
from milepost.cluster.system import System
from milepost.learner.credit.filter import Verdict
from milepost.learner.loop import UpdateReport
from milepost.learner.recipe import UpdateOptions
from milepost.learner.zero.checkpoint import Found

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Progress:
    """How far the history that survives has come."""

    folder: RunFolder
    iteration: int = 0
    version: int = 0
    saved: int | None = None
    """Version of the newest checkpoint."""
    unsettled_bytes: int = 0
    """What was consumed since; it stays in the buffer until the next one."""

    @property
    def unsaved(self) -> int:
        """Updates that no checkpoint holds."""
        return self.version - (self.saved or 0)

    @property
    def way_on(self) -> str:
        """For people: how to go on from here after the end."""
        how_far = f"the newest checkpoint is of version {self.saved}"
        if self.saved is None:
            how_far = "no checkpoint was written yet" if self.version else "nothing was trained yet"
        return f"{how_far}: milepost train --resume {os.path.relpath(self.folder.path)}"


class Recovery:
    """Of one run whose parts are up. Calls raise LearnerLost where a rank ends meanwhile."""

    def __init__(self, system: System, reporter: Reporter, progress: Progress, histories: GroupHistories) -> None:
        self._system = system
        self._reporter = reporter
        self._progress = progress
        self._histories = histories
        self._whole = asyncio.Event()
        """Set while ranks, progress and ledger agree: not within an update, and not after one that broke off."""
        self._whole.set()
        self._step_s = 0.0

    async def begin(self, start: Start) -> None:
        """Bring learner and ledger to where a driver begins, whatever an earlier one left."""
        if start.found:
            await self._system.learners.load(start.found.path)
        await self._reconcile(start.found)
        ledger = self._system.ledger
        await ledger.set_versions(published=start.version)  # the engines started on it
        await ledger.release_all()

    async def train(self, taken: Taken, options: UpdateOptions) -> UpdateReport:
        """Update the ranks' weights; `consume` then makes the rest of the run agree with them."""
        self._reporter.activity("training")
        self._whole.clear()
        began = time.monotonic()
        groups = [leased.encoded for leased in taken.groups]
        report = await self._system.learners.train(groups, self._progress.version, options)
        self._step_s = time.monotonic() - began
        return report

    async def consume(self, taken: Taken, verdicts: Sequence[Verdict]) -> None:
        """An update is made: checkpoint it if due, and commit what it consumed.

        Where a step takes longer than a stop waits for one, every update is saved: a stop loses that step at most.
        """
        progress, config = self._progress, self._system.config
        outcomes: dict[str, FinalState] = {
            leased.group_id: "trained" if verdict.keep else "filtered"
            for leased, verdict in zip(taken.groups, verdicts, strict=True)
        }
        progress.iteration += 1
        progress.version += 1
        progress.unsettled_bytes += sum(leased.encoded.num_bytes for leased in taken.groups)
        is_due = progress.iteration % config.run.checkpoint_every == 0
        is_long = self._step_s > config.run.step_patience_s
        if is_due or is_long or progress.unsettled_bytes > config.buffer.consumed_bytes_limit:
            await self._save(outcomes)
        await self._system.buffer.commit(progress.version, outcomes)
        await self._histories.remember([leased.group for leased in taken.groups], progress.version)
        logger.info("version %d consumed %s", progress.version, ", ".join(outcomes))
        if progress.saved == progress.version:
            await self._settle()
        self._whole.set()

    async def checkpoint(self) -> None:
        """Save the current weights unless that was done, and settle what they consumed."""
        if self._progress.saved != self._progress.version:
            await self._save({})
            await self._settle()

    async def save_before(self, end: Exception, training: asyncio.Task[None]) -> None:
        """Checkpoint what was learnt before `end` ends the run, once an update under way has ended; never raises.

        Nothing is saved of an update that broke off, or of a policy that diverged. All of it has the stop's grace.
        """
        if isinstance(end, Diverged | Stopped):
            return
        whole = asyncio.ensure_future(self._whole.wait())
        try:
            async with asyncio.timeout(self._system.config.run.stop_grace_s):
                await asyncio.wait({whole, training}, return_when=asyncio.FIRST_COMPLETED)
                training.cancel()
                await asyncio.wait({training})
                if self._whole.is_set() and self._progress.version > 0:
                    await self.checkpoint()
        except (Exit, OSError, TimeoutError) as error:
            logger.warning(
                "the last checkpoint was not written: %s", str(error) or "it took longer than run.stop_grace_s"
            )
        finally:
            whole.cancel()
        self._reporter.note(self._progress.way_on)

    async def make_room(self) -> None:
        """Settle what was consumed, by a checkpoint, where the buffer is so full that nothing is issued."""
        if self._progress.unsettled_bytes:
            depth = await self._system.buffer.depth()
            if depth.bytes >= self._system.config.buffer.high_water_bytes:
                await self.checkpoint()

    async def recover(self, lost: LearnerLost) -> None:
        """Bring a lost learner back from the newest valid checkpoint, and everyone else to the same point."""
        system, progress = self._system, self._progress
        self._reporter.note(f"learner lost ({lost}); starting it again from the newest checkpoint")
        await system.ledger.pause()
        found = newest_checkpoint(system.folder, self._reporter)
        await system.learners.recover(found.path if found else None)
        progress.iteration = found.manifest.record.iteration if found else 0
        progress.version = found.manifest.record.policy_version if found else 0
        self._reporter.rolled_back(progress.version)
        await self._reconcile(found)
        await system.publish(progress.version, rollback=True)
        await system.ledger.resume()  # not before: the engines held weights that are undone
        self._whole.set()

    async def _reconcile(self, found: Found | None) -> None:
        """Make ledger and checkpoint agree: what the checkpoint consumed is settled, what came later is undone."""
        buffer, ledger, progress = self._system.buffer, self._system.ledger, self._progress
        progress.saved, progress.unsettled_bytes = progress.version if found else None, 0
        logger.info("history goes on from version %d", progress.version)
        before = await ledger.version()
        if (await ledger.balance()).issued_total == 0:
            await ledger.set_versions(version=progress.version)
            return
        if before > progress.version:
            await buffer.rollback(progress.version)
        elif found and before < progress.version:
            await self._catch_up(found, before)
        buffer.redeliver()
        await buffer.settle(progress.version)

    async def _catch_up(self, found: Found, before: int) -> None:
        """The checkpoint is ahead of the ledger: by the commit that a crash left out, or by what Redis forgot."""
        record, buffer = found.manifest.record, self._system.buffer
        if before == record.policy_version - 1 and record.consumed:
            with contextlib.suppress(BufferRefused):  # its groups are not there
                return await buffer.commit(
                    record.policy_version, msgspec.convert(record.consumed, dict[str, FinalState])
                )
        dropped = await buffer.advance(record.policy_version)
        self._reporter.note(
            f"Redis is at version {before} and the checkpoint at {record.policy_version}: the checkpoint counts, "
            f"{dropped} groups that Redis still held are dropped and their tasks played again"
        )

    async def _save(self, consumed: Mapping[str, FinalState]) -> None:
        self._reporter.activity("writing a checkpoint")
        progress, system = self._progress, self._system
        saved = await system.learners.save(iteration=progress.iteration, version=progress.version, consumed=consumed)
        system.folder.keep_policy(saved / "policy", progress.version)
        progress.saved, progress.unsettled_bytes = progress.version, 0
        self._reporter.saved()

    async def _settle(self) -> None:
        """The checkpoint of this version holds everything so far: buffer and histories forget its groups."""
        await self._system.buffer.settle(self._progress.version)
        await self._histories.settle(self._progress.version)


async def let_step_end(work: asyncio.Task[None], patience_s: float, progress: Progress, reporter: Reporter) -> None:
    """A stop was asked for: wait for the step under way, beyond `patience_s` only where more than it would be lost.

    The step has a deadline of its own, and a second signal kills.
    """
    unsaved = progress.unsaved
    await asyncio.wait({work}, timeout=patience_s)
    if unsaved and not work.done():
        reporter.note(f"waiting for a long step, with {unsaved} unsaved before it; once more to kill")
        await asyncio.wait({work})
