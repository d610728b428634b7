"""What a tracker is: it is told of numbers by step, and of the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """The run that a tracker is opened for."""

    run_id: str
    folder: Path
    """The run's own, for a tracker that writes files."""
    parameters: Mapping[str, Any]
    """The configuration, by dotted key."""
    iteration: int
    """How many iterations are done: more than 0 where the run is resumed."""


class Tracker(Protocol):
    """One that is open. A resumed run goes on in the same run of the tracker. Methods may raise and may take long."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """What was measured after iteration `step`."""

    def end(self) -> None:
        """Nothing more comes."""
