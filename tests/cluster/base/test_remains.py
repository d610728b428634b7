"""What a killed process had started is killed too, in whatever session and environment it lives."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from milepost.cluster.base.remains import MARK

WORKER = """
import os, subprocess, sys, time
from milepost.cluster.base.remains import end_with_this_process
end_with_this_process()
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
group = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); input()"
subprocess.Popen(sleep)
subprocess.Popen([sys.executable, "-c", group], start_new_session=True, env={}, stdin=subprocess.PIPE)
if os.fork() == 0:  # a daemon: nobody's child, in a session of its own
    os.setsid()
    subprocess.Popen(sleep)
    os._exit(0)
os.wait()
open(sys.argv[1], "w").close()
time.sleep(60)
"""
STRANGER = [sys.executable, "-c", "import time; time.sleep(60)"]


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE}


def wait_until(what: str, holds: object) -> None:
    end = time.monotonic() + 20
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end, what
        time.sleep(0.05)


def test_children_groups_and_daemons_end_with_a_killed_process_and_strangers_do_not(tmp_path: Path) -> None:
    started = tmp_path / "started"
    environment = os.environ | {MARK: f"worker-of-{os.getpid()}"}
    stranger = subprocess.Popen(STRANGER, env=os.environ | {MARK: "another"})
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(started)], env=environment)
    try:
        wait_until("the worker to start its processes", started.exists)
        wait_until("its group to start", lambda: len(psutil.Process(worker.pid).children(recursive=True)) == 3)
        mine = {p.pid for p in psutil.Process(worker.pid).children(recursive=True)}
        daemons = {p.pid for p in psutil.process_iter() if p.pid not in mine | {worker.pid} and marked(p)}
        assert len(daemons) == 2  # the daemon's child and the watcher
        time.sleep(1.2)  # the watcher looks once a second
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        wait_until("all of them to end", lambda: not alive(mine | daemons))
        assert stranger.poll() is None
    finally:
        for process in (stranger, worker):
            process.kill()
            process.wait()


def marked(process: psutil.Process) -> bool:
    try:
        return process.environ().get(MARK) == f"worker-of-{os.getpid()}"
    except psutil.Error:
        return False
