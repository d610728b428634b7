"""CPU time and memory of a process and everything it started, seen from outside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil


class ProcessTree:
    """What ends between two looks keeps the CPU time that was last seen of it."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._cpu_s: dict[psutil.Process, float] = {}

    def cpu_s(self) -> float:
        """User and system time of all of them since they began."""
        for process in self._living():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                self._cpu_s[process] = times.user + times.system
        return sum(self._cpu_s.values())

    def memory_bytes(self) -> int:
        """Proportional set size: a page that n of them share counts 1/n for each."""
        total = 0
        for process in self._living():
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total

    def _living(self) -> Iterator[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            yield self._root
            yield from self._root.children(recursive=True)
