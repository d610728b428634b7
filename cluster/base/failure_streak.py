"""When a run is given up because its episodes do nothing but fail: after so many of them and so much time, both.

A number alone would end a run by the second in which a service it uses was away, a time alone by one straggler. Plain
arithmetic on counts and a clock.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

_NEVER_GOOD_S = 20.0
"""Patience with a run of which no episode ever came through: what is wrong was so from the start."""
_LONGEST_GAP_S = 60.0
"""A longer time without a failure counts as this: nothing may have been played then."""


def patience_s(give_up_after_s: float, *, was_good: bool) -> float:
    """Seconds in which nothing but failures is borne; `was_good` says whether an episode ever came through."""
    return give_up_after_s if was_good else min(give_up_after_s, _NEVER_GOOD_S)


@dataclass(frozen=True, slots=True)
class Streak:
    """Failed episodes in a row."""

    by_env: int
    by_infra: int
    seconds: float
    """From the first to the last of them."""

    def __str__(self) -> str:
        return f"{self.by_env + self.by_infra} episodes in a row failed within {self.seconds:.0f} s"


class FailureStreak:
    """What failed since the last episode that came through."""

    def __init__(self, *, episodes: int, give_up_after_s: float) -> None:
        self._episodes = episodes
        self._give_up_after_s = give_up_after_s
        self._good: int | None = None
        self._env = self._infra = self._last_infra = 0
        """Counts at the last episode that came through; what was excused since is added."""
        self._failed = 0
        self._seconds = self._last = 0.0

    def see(self, *, good: int, by_env: int, by_infra: int, is_excused: bool = False) -> Streak | None:
        """Take the counts of the run so far; the streak, if it is long enough to give up.

        `is_excused`: what the infrastructure lost since the last call is being mended, and does not count.
        """
        if good != self._good:
            self._good, self._env, self._infra, self._failed, self._seconds = good, by_env, by_infra, 0, 0.0
        elif is_excused:
            self._infra += by_infra - self._last_infra
        self._last_infra = by_infra
        by_env, by_infra = by_env - self._env, by_infra - self._infra
        failed, now = by_env + by_infra, time.monotonic()
        if failed > self._failed:
            self._seconds += min(now - self._last, _LONGEST_GAP_S) if self._failed else 0.0
            self._last = now
        self._failed = failed
        enough_s = patience_s(self._give_up_after_s, was_good=good > 0)
        is_hopeless = failed >= self._episodes and self._seconds >= enough_s
        return Streak(by_env, by_infra, self._seconds) if is_hopeless else None
