"""Ends what a killed process leaves behind: processes that its user code started, in whatever group or session.

A watcher, one small process of its own (this file, run as a program), looks every second at the descendants of the
process and keeps them in mind. When the process is gone it kills them, and every other process that carries its mark in
its environment. Not promised: a process that was started in the last second, with an environment of its own, lives on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress

import psutil

MARK = "MILEPOST_WORKER"
"""The environment variable that names the process; to be set before it starts."""
_START_S = 60.0
_LOOK_EVERY_S = 1.0
_FEEL_EVERY_S = 0.2
_SWEEPS = 5
_SWEEP_EVERY_S = 0.2


def end_with_this_process() -> None:
    """Have a watcher end what this process leaves behind, also after a SIGKILL. Returns once it watches.

    Raises subprocess.SubprocessError if it does not.
    """
    command = [sys.executable, "-P", __file__, str(os.getpid()), os.environ.get(MARK, "")]
    quiet = subprocess.DEVNULL
    subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=_START_S, check=True)


def _watch(pid: int, mark: str) -> None:
    try:
        watched = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    if os.fork():
        os._exit(0)  # the watcher is nobody's child: Ray kills those of a worker together with it
    os.setsid()
    known: set[psutil.Process] = set()
    look_at = 0.0
    while _is_alive(watched):
        if time.monotonic() >= look_at:
            with suppress(psutil.NoSuchProcess):
                known.update(watched.children(recursive=True))
            known = {process for process in known if _is_alive(process)}
            look_at = time.monotonic() + _LOOK_EVERY_S
        time.sleep(_FEEL_EVERY_S)
    for _ in range(_SWEEPS):
        for process in known | _marked(mark):
            with suppress(psutil.Error):
                process.kill()
        time.sleep(_SWEEP_EVERY_S)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _marked(mark: str) -> set[psutil.Process]:
    found: set[psutil.Process] = set()
    for process in psutil.process_iter() if mark else ():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.add(process)
    return found


if __name__ == "__main__":
    _watch(int(sys.argv[1]), sys.argv[2])
