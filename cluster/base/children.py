"""Child processes that must not outlive this one."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
"""Loaded here: between fork and exec, where `end_with_parent` runs, nothing may be imported or allocated."""


def end_with_parent() -> None:
    """For `preexec_fn`: the kernel sends SIGTERM to the child when the thread that started it ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
