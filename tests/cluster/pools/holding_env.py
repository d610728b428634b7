"""An environment that holds the interpreter, after it has started a process group of its own."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

from tests.broken_envs import CountingEnv


class HoldsTheInterpreter(CountingEnv):
    """Its first reset writes the group's process id into `place` and never comes back; later ones are in order."""

    def __init__(self, *, place: str) -> None:
        super().__init__()
        self.place = Path(place)

    def reset(self, **_: Any) -> Any:
        if not self.place.exists():
            process = subprocess.Popen(["sleep", "600"], start_new_session=True)
            self.place.with_suffix(".part").write_text(str(process.pid))
            self.place.with_suffix(".part").rename(self.place)
            re.match(r"(a+)+$", "a" * 64 + "b")  # backtracks for ever, with the interpreter's lock
        raise ValueError("a worker that was replaced plays it again")
