"""How often a part may be started again: so many times within a window of time, each time after a longer pause.

Plain arithmetic on a clock. A loss a day never ends a run, however long it is; a part that dies again and again pauses
longer and longer and is then given up, until the window has passed over its restarts. What a pool does meanwhile, and
when it is too small to go on, is the pool's to say.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque

from pydantic import BaseModel, ConfigDict, Field

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_RECENT_SHARE = 1 / 6
"""Of the window: a restart longer ago than this doubles no pause."""
_FALSE_STARTS = 5
"""In a row: what never came up so often does not come up the next time."""


class RestartConfig(BaseModel):
    """How often lost parts are replaced, and with how few of them the run goes on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    window_s: float = Field(3600, gt=0, description="Restart window in seconds, within which all limits here count")
    max_per_engine: int = Field(5, ge=0, description="Restart limit of each inference engine")
    max_per_worker: int = Field(40, ge=0, description="Restart limit of each rollout worker")
    max_learner: int = Field(3, ge=0, description="Restart limit of the learner, whose ranks restart together")
    room_timeout_s: float = Field(
        600, gt=0, description="Room timeout in seconds: how long parts whose host is gone wait for another host"
    )
    min_engines: int = Field(
        1, ge=1, description="Smallest number of engines, serving or waited for, with which the run goes on"
    )
    min_workers: int = Field(
        1, ge=1, description="Smallest number of workers, playing or waited for, with which the run goes on"
    )


class RestartBudget:
    """Restarts of the slots of one pool, each slot by itself: what kills one worker leaves the others theirs."""

    def __init__(self, limit: int, window_s: float) -> None:
        self._limit = limit
        self._window_s = window_s
        self._spent: defaultdict[int, deque[float]] = defaultdict(deque)
        self._since_up: defaultdict[int, int] = defaultdict(int)
        self.total = 0
        """Restarts so far, of all slots."""

    def came_up(self, slot: int) -> None:
        """What was started in `slot` serves."""
        self._since_up[slot] = 0

    def spend(self, slot: int) -> float | None:
        """Count one more restart of `slot`: the pause before it in seconds, or None where it has none left now."""
        now, spent = time.monotonic(), self._spent[slot]
        while spent and now - spent[0] >= self._window_s:
            spent.popleft()
        if not spent:
            self._since_up[slot] = 0
        if len(spent) >= self._limit or self._since_up[slot] >= _FALSE_STARTS:
            return None
        self._since_up[slot] += 1
        recent = sum(now - at < _RECENT_SHARE * self._window_s for at in spent)
        spent.append(now)
        self.total += 1
        return min(_FIRST_PAUSE_S * 2.0 ** min(recent - 1, 10), _LONGEST_PAUSE_S) if recent else 0.0
