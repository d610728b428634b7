"""Where a worker's groups come from and its episodes go: the ledger, and the buffer.

Not promised: that a group is to be had. While admission is closed or Redis away, there is none.
"""

from __future__ import annotations

import logging

from milepost.actors.worker import Ticket
from milepost.cluster.replay.buffer import TrajectoryBuffer
from milepost.cluster.replay.client import BufferUnavailable
from milepost.cluster.replay.ledger import Ledger
from milepost.cluster.replay.task_success import TaskSuccess
from milepost.cluster.replay.wire import WireError
from milepost.cluster.trajectories.recording import RecordingQueue
from milepost.envs.scenarios import ScenarioSet
from milepost.envs.types import Failure, Task, Trajectory

logger = logging.getLogger(__name__)
_REFUSED = {
    "duplicate": "another worker had played it before",
    "late": "its group was over, or weights of an undone history sampled it",
}


class LedgerSource:
    """Groups as the ledger gives them out: first those that a lost worker left behind, then new ones."""

    def __init__(
        self,
        ledger: Ledger,
        success: TaskSuccess,
        scenarios: ScenarioSet,
        *,
        owner: str,
        group_size: int,
        lease_s: float,
    ) -> None:
        """`success` knows which tasks a curriculum leaves out."""
        self._ledger = ledger
        self._success = success
        self._scenarios = scenarios
        self._owner = owner
        self._group_size = group_size
        self._lease_s = lease_s
        self._chosen: tuple[int, Task] | None = None
        """Number and task of the group that it tries to issue: the same task at every try."""

    async def next_group(self) -> Ticket | None:
        """A group to play, or None while admission is closed or Redis away."""
        try:
            return await self._next()
        except BufferUnavailable as error:
            logger.warning("no new groups: %s", error)
            return None

    async def _next(self) -> Ticket | None:
        lease_s = self._lease_s
        left = await self._ledger.adopt(self._owner, lease_s)
        if left is not None:
            return Ticket(group_id=left.group_id, task=left.task, indices=tuple(left.missing))
        sequence = await self._ledger.next_sequence(self._owner)
        if self._chosen is None or self._chosen[0] != sequence:
            self._chosen = sequence, await self._success.choose(self._scenarios.candidates(sequence))
        task = self._chosen[1]
        group_id = f"g{sequence:08d}"
        size = self._group_size
        if not await self._ledger.issue(task=task, group_id=group_id, size=size, owner=self._owner, lease_s=lease_s):
            return None
        return Ticket(group_id=group_id, task=task, indices=tuple(range(size)))

    async def renew(self, group_ids: list[str]) -> None:
        """Extend the leases of groups under way; one that runs out meanwhile is given to another worker."""
        try:
            await self._ledger.renew(group_ids, self._owner, self._lease_s)
        except BufferUnavailable as error:
            logger.warning("leases not renewed: %s", error)


class BufferSink:
    """Finished episodes into the buffer, waiting while it is full; what it does not take is told to `recordings`."""

    def __init__(self, buffer: TrajectoryBuffer, recordings: RecordingQueue) -> None:
        self._buffer = buffer
        self._recordings = recordings

    async def put(self, result: Trajectory | Failure) -> None:
        """Store one result; a trajectory that is too large becomes a failure.

        Raises BufferUnavailable at the deadline, naming what it waited for.
        """
        try:
            answer = await self._buffer.put_with_backpressure(result)
            if answer != "ok" and isinstance(result, Trajectory):
                self._recordings.refused(result.group_id, result.index, "late", _REFUSED[answer])
        except WireError as error:
            failure = untransportable(result, error)
            reason = f"{failure.boundary}: {failure.error}: {failure.message}"
            self._recordings.refused(failure.group_id, failure.index, "failed", reason)
            await self._buffer.put_with_backpressure(failure)


def untransportable(result: Trajectory | Failure, error: WireError) -> Failure:
    """What becomes of an episode that the wire does not take: too large as a rule, which `error` says.

    It is nothing that its environment did wrong, and nothing that playing it again would mend.
    """
    return Failure(
        task=result.task,
        group_id=result.group_id,
        index=result.index,
        boundary="infra",
        error=type(error).__name__,
        message=str(error),
        turn=len(result.turns) if isinstance(result, Trajectory) else result.turn,
        started_at=result.started_at,
        seconds=result.seconds,
        cohort=result.cohort,
    )
