"""How often training tasks were solved lately, in Redis beside the ledger: what a curriculum chooses by.

It says what is worth playing and is never trained on. What is kept follows the groups that updates consumed, so a
resumed run goes on with it; it is not part of a checkpoint: after a rollback it still knows what the abandoned updates
saw. The driver alone writes, every worker reads.
"""

from __future__ import annotations

from statistics import fmean
from typing import Final

from milepost.cluster.replay.client import Client
from milepost.cluster.replay.store import Store
from milepost.envs.scenarios import Candidates
from milepost.envs.types import Group, Task

LOWEST: Final = 0.1
HIGHEST: Final = 0.9
"""A task is left out while its recent success lies outside of these: most of its groups would be all alike."""
_NEWEST_WEIGHT: Final = 0.5
"""Of the newest group in the moving average of success."""


class TaskSuccess:
    """Recent success of one run's tasks. Every method can be repeated and raises as `Store.command` does."""

    def __init__(self, client: Client, run_id: str) -> None:
        self._store = Store(client, run_id)

    async def add(self, group: Group) -> None:
        """Count a group that an update consumed; a call that is repeated at once counts once."""
        key, seed = self._key(group.task), str(group.task.seed)
        before, _, last = (await self._store.command("HGET", key, seed) or b"").decode().partition(" ")
        if last == group.group_id:
            return
        recent = fmean(trajectory.outcome == "success" for trajectory in group.trajectories)
        if before:
            recent = float(before) + _NEWEST_WEIGHT * (recent - float(before))
        await self._store.command("HSET", key, seed, f"{recent!r} {group.group_id}")

    async def choose(self, candidates: Candidates) -> Task:
        """The first candidate that is in, or left out where such a one is to be revisited; the very first if none is.

        A task that was never trained on is in.
        """
        tasks = candidates.tasks
        if len(tasks) == 1:
            return tasks[0]
        found = await self._store.command("HMGET", self._key(tasks[0]), *(str(task.seed) for task in tasks))
        left_out = [value is not None and not LOWEST <= float(value.partition(b" ")[0]) <= HIGHEST for value in found]
        chosen = (task for task, is_out in zip(tasks, left_out, strict=True) if is_out == candidates.revisits)
        return next(chosen, tasks[0])

    def _key(self, task: Task) -> str:
        """Of a hash with the training tasks of one environment: seed -> recent success and the last group's id."""
        return f"mp:{{{self._store.run_id}}}:success:{task.env_name}"
