"""CPU time and memory of a process and everything it started, and what others took of the machine; from outside."""

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


class StolenTime:
    """Of a virtual machine: the CPU time that it asked for and its host gave to others, from look to look."""

    def __init__(self) -> None:
        self._seen = _times()

    def share(self) -> float:
        """Of what was asked for since the last look; 0 where nobody takes any."""
        (stolen_before, asked_before), self._seen = self._seen, _times()
        stolen, asked = self._seen
        return (stolen - stolen_before) / max(asked - asked_before, 1e-9)


def _times() -> tuple[float, float]:
    times = psutil.cpu_times()
    return times.steal, times.user + times.nice + times.system + times.irq + times.softirq + times.steal
