"""What Kubernetes runs before it ends a head, against a real Ray head: jobs have time to stop."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from tests.system.test_job import START_S, Head, head

__all__ = ["head"]
pytestmark = [pytest.mark.services, pytest.mark.sweep]
_SLOW_TO_STOP = """
import pathlib, signal, sys, time
def stop(*_):
    time.sleep(2)
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
time.sleep(600)
"""


def stop_jobs(head: Head, patience_s: float) -> str:
    """The ids of the jobs that still run afterwards, as it prints them."""
    code = f"from deploy.kuberay.stop_jobs import stop_jobs; print(stop_jobs({head.dashboard!r}, {patience_s}))"
    done = head.bash(shlex.join([sys.executable, "-c", code]), timeout_s=START_S)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_running_job_is_waited_for_until_it_has_saved(head: Head, tmp_path: Path) -> None:
    saved, program = tmp_path / "saved", tmp_path / "program.py"
    program.write_text(_SLOW_TO_STOP)
    env = '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "20"}}'
    submit = ["submit", "--submission-id", "slow", "--runtime-env-json", env, "--no-wait", "--"]
    assert head.ray(*submit, sys.executable, str(program), str(saved), timeout_s=START_S).returncode == 0
    while "up" not in head.ray("logs", "slow", timeout_s=START_S).stdout:
        assert head.job("slow")["status"] in ("PENDING", "RUNNING")
    assert stop_jobs(head, 0.0) == "['slow']"
    assert stop_jobs(head, 30.0) == "[]"
    assert saved.read_text() == "saved"
    assert head.job("slow")["status"] == "STOPPED"
