"""How far long work has come, said now and then with what is left of it."""

from __future__ import annotations

import time
from collections.abc import Callable

_EVERY_S = 10.0


class Countdown:
    """Says a line every few seconds, and estimates from what is done how long the rest takes."""

    def __init__(self, name: str, total: int, say: Callable[[str], None]) -> None:
        self._name, self._total, self._say = name, total, say
        self._began = self._said = time.monotonic()

    def done(self, count: int, of_what: str, note: str = "") -> None:
        """`count` of the total are done; the last one is always said."""
        now = time.monotonic()
        if count < self._total and now - self._said < _EVERY_S:
            return
        self._said = now
        spent = now - self._began
        left = f"about {spent * (self._total - count) / count:.0f} s left" if count < self._total else f"{spent:.0f} s"
        self._say(f"{self._name}: {count}/{self._total} {of_what}{note}, {left}")
