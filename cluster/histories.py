"""What earlier groups of a task met, for the credit of its next group; how often they solved it, for a curriculum.

Each is kept only where the credit strategy or the environment asks for it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence, Set
from typing import Self

from milepost.cluster.replay.history import TaskHistory
from milepost.cluster.replay.task_success import TaskSuccess
from milepost.cluster.replay.wire import WireError
from milepost.cluster.system import System
from milepost.envs.types import Group
from milepost.learner.credit.assignment import PastTransition, from_group
from milepost.learner.credit.history import transitions
from milepost.learner.credit.settings import GraphSettings, Truncation
from milepost.learner.recipe import Histories

logger = logging.getLogger(__name__)


class GroupHistories:
    """Of one run. Every call may be repeated. A history that cannot be read or stored is none: credit does without."""

    def __init__(
        self,
        history: TaskHistory | None,
        success: TaskSuccess | None = None,
        *,
        curricula: Set[str] = frozenset(),
        truncation: Truncation = "failure",
    ) -> None:
        """No history: the credit strategy keeps none, and none is fetched or remembered.

        `curricula` are the names of the environments of which `success` keeps how often tasks are solved.
        """
        self._history = history
        self._success = success
        self._curricula = curricula
        self._truncation = truncation

    @classmethod
    def of(cls, system: System) -> Self:
        """Of a system whose Redis is up."""
        credit, run_id = system.config.credit, system.folder.run_id
        success = TaskSuccess(system.redis, run_id)
        curricula = {env.name for env in system.config.envs if env.curriculum == "success"}
        if not isinstance(credit, GraphSettings) or not credit.history_decay:
            return cls(None, success, curricula=curricula)
        history = TaskHistory(system.redis, run_id, decay=credit.history_decay)
        return cls(history, success, curricula=curricula, truncation=credit.truncation)

    async def fetch(self, groups: Sequence[Group], version: int) -> Histories | None:
        """What is known of the task of each of `groups`, as it has faded by policy `version`."""
        if self._history is None:
            return None
        return tuple([await self._known(self._history, group, version) for group in groups])

    async def remember(self, groups: Sequence[Group], version: int) -> None:
        """The update that made `version` consumed `groups`; each counts once."""
        if self._success is not None:
            for group in groups:
                if group.task.env_name in self._curricula:
                    await self._success.add(group)
        if self._history is not None:
            for group in groups:
                met = transitions(from_group(group), truncation=self._truncation)
                try:
                    await self._history.add(group.task, group.group_id, met, version=version)
                except WireError as error:
                    logger.warning("group %s adds nothing to its task's history: %s", group.group_id, error)

    async def _known(self, history: TaskHistory, group: Group, version: int) -> tuple[PastTransition, ...]:
        try:
            (known,) = await history.fetch([group.task], version=version)
        except WireError as error:
            logger.warning("group %s is credited without history: %s", group.group_id, error)
            return ()
        return known

    async def settle(self, version: int) -> None:
        """A checkpoint holds everything up to `version`: its groups do not come again."""
        if self._history is not None:
            await self._history.settle(version)
