"""What an update is told beyond its groups, and what is remembered of it: task histories and the watch's options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

from milepost.cluster.replay.history import TaskHistory
from milepost.cluster.replay.ready import ReadyGroups
from milepost.cluster.system import System
from milepost.cluster.watch import Watch
from milepost.envs.types import Group, Task
from milepost.learner.credit.assignment import PastTransition, from_group
from milepost.learner.credit.history import transitions
from milepost.learner.credit.settings import GraphSettings
from milepost.learner.recipe import UpdateOptions


class TransitionMemory(Protocol):
    """What earlier groups of a task met, wherever it is kept. Every call may be repeated."""

    async def fetch(self, tasks: Sequence[Task], *, version: int) -> list[tuple[PastTransition, ...]]:
        """What is known of each of `tasks`, as it has faded by policy `version`."""
        ...

    async def add(self, task: Task, group_id: str, new: Sequence[PastTransition], *, version: int) -> bool:
        """What the group met, once; False if it was counted before."""
        ...

    async def settle(self, version: int) -> None:
        """Groups consumed up to `version` do not come again."""
        ...


class Guidance:
    """Of one run. Calls raise as `Store.command` does and may be repeated."""

    def __init__(self, watch: Watch, buffer: ReadyGroups, history: TransitionMemory | None) -> None:
        self._watch = watch
        self._buffer = buffer
        self._history = history

    @classmethod
    def of(cls, system: System, watch: Watch) -> Self:
        """Of a system whose Redis is up, with a history where its credit strategy keeps one."""
        credit = system.config.credit
        decay = credit.history_decay if isinstance(credit, GraphSettings) else 0.0
        history = TaskHistory(system.redis, system.folder.run_id, decay=decay) if decay else None
        return cls(watch, system.buffer, history)

    async def options(self, groups: Sequence[Group], version: int) -> UpdateOptions:
        """For the update of policy `version` on `groups`."""
        histories = None
        if self._history is not None:
            histories = tuple(await self._history.fetch([group.task for group in groups], version=version))
        return UpdateOptions(histories=histories, filter=self._watch.filter, lr_factor=self._watch.lr_factor)

    async def remember(self, groups: Sequence[Group], version: int) -> None:
        """The update that made `version` consumed `groups`; each counts once."""
        if self._history is not None:
            for group in groups:
                await self._history.add(group.task, group.group_id, transitions(from_group(group)), version=version)

    async def settle(self, version: int) -> None:
        """A checkpoint holds everything up to `version`: in buffer and histories its groups need no memory."""
        await self._buffer.settle(version)
        if self._history is not None:
            await self._history.settle(version)
