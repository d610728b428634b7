"""Which groups a person looks at, out of all that pass: the one that tells most, and a sample over the whole source.

A group tells most where its outcomes differ most, since credit is what tells them apart; among equals where the first
strategy's credit differs most, and among those the earliest. The sample is evenly spaced, and the same each time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from milepost.cluster.workbench.credit_page import ScoredGroup

_MOST_GROUPS = 40
_MOST_TURNS = 8000


class Shown:
    """Keeps a few groups: the one of `task` where it is asked for, else the one that tells most, and a sample."""

    def __init__(self, task: str | None) -> None:
        self._task = task
        self._stride = 1
        self._sample: dict[int, ScoredGroup] = {}
        """By place; every `_stride`-th group that has passed."""
        self._opening: ScoredGroup | None = None
        self._told: tuple[float, float] = (-1.0, -1.0)
        self.num_groups = 0
        self.has_task = False

    def watching(self, groups: Iterator[ScoredGroup]) -> Iterator[ScoredGroup]:
        """Pass the groups on."""
        for one in groups:
            self._look(one)
            yield one

    @property
    def groups(self) -> list[ScoredGroup]:
        """The one to open at, and then the sample in the order in which it came; empty if none has passed."""
        opening = [] if self._opening is None else [self._opening]
        return opening + [one for one in self._sample.values() if one is not self._opening]

    def _look(self, one: ScoredGroup) -> None:
        place, self.num_groups = self.num_groups, self.num_groups + 1
        if self._task is None and (told := tells(one)) > self._told:
            self._opening, self._told = one, told
        elif one.group.task_id == self._task and not self.has_task:
            self._opening, self.has_task = one, True
        if place % self._stride == 0:
            self._sample[place] = one
        while len(self._sample) > 1 and self._is_full():
            self._stride *= 2
            self._sample = {at: kept for at, kept in self._sample.items() if at % self._stride == 0}

    def _is_full(self) -> bool:
        turns = sum(len(t.turns) for one in self._sample.values() for t in one.group.trajectories)
        return len(self._sample) > _MOST_GROUPS or turns > _MOST_TURNS


def tells(one: ScoredGroup) -> tuple[float, float]:
    """How much a group tells: variance of its trajectories' success, then spread of the first strategy's credit."""
    won = [trajectory.outcome == "success" for trajectory in one.group.trajectories]
    credit = next(iter(one.credits.values()))
    return float(np.var(won)), float(np.std(np.concatenate(credit.total)))
