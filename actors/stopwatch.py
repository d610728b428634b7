"""When an episode began, and how long it takes: by the wall clock for people, by a steady one for what is measured."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """Started where it is made."""

    started_at: float = field(default_factory=time.time)
    """Unix time."""
    _began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    def seconds_at(self, moment: float) -> float:
        """From the start to a moment of `time.monotonic`."""
        return moment - self._began
