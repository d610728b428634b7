"""The same run as a Ray job: `ray job stop` is an orderly stop, and the job that is submitted again goes on to its end.

The cluster is one machine, ours, with fewer CPUs than the run has processes.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from milepost.cluster.base.ports import free_port
from milepost.cluster.runlog.records import iterations, read_records
from milepost.cluster.runlog.runs import RunFolder, list_runs
from milepost.learner.zero import checkpoint
from tests.system.driving import ROOT, START_S, environment, is_alive, write_config

pytestmark = pytest.mark.services
_BIN = Path(sys.executable).parent
_STOP_WAIT_S = 25
HEAD, ENTRY = "ray start --head", "train deploy/configs/local.toml --set run.runs_dir=$PWD/runs"
_SECTION = (ROOT / "README.md").read_text(encoding="utf-8").partition("## On a Ray cluster")[2]
PREPARED, _, SUBMIT = _SECTION.partition("```\n")[2].partition("```")[0].partition(f"{HEAD}\n")
"""What the README tells to type, before and after it starts the head."""
LOCAL_RUN = "import ray; from milepost.cluster.hosts.ray_start import start_ray; start_ray(''); ray.shutdown()"
"""What every local run does first, and what it leaves is in the account's home: Ray's token."""


@dataclass
class Head:
    """A Ray head on loopback, started as the README says, on an account that local runs were made on."""

    process: subprocess.Popen[bytes]
    dashboard: str
    token: str
    env: dict[str, str]

    def ray(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """A `ray job ...` command against this head."""
        return self.bash(shlex.join(["ray", "job", *arguments]), timeout_s=timeout_s)

    def bash(self, command: str, *, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """A command after the README's own preparations, from the repository's root."""
        script = ["bash", "-ec", f"{PREPARED}\n{command}"]
        address = self.env | {"RAY_ADDRESS": self.dashboard}
        return subprocess.run(
            script, cwd=ROOT, env=address, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def submit(self, name: str, config: Path, *options: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """The README's command for another config and name, with more options."""
        assert ENTRY in SUBMIT
        submitted = SUBMIT.replace(ENTRY, shlex.join(["train", str(config)])).replace('"60"', f'"{_STOP_WAIT_S}"')
        named = shlex.join(["ray", "job", "submit", "--submission-id", name, *options])
        return self.bash(submitted.replace("ray job submit", named), timeout_s=timeout_s)

    def job(self, name: str) -> dict[str, Any]:
        """What the jobs API says about a job."""
        request = urllib.request.Request(
            f"{self.dashboard}/api/jobs/{name}", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


@pytest.fixture
def head() -> Iterator[Head]:
    with tempfile.TemporaryDirectory(prefix="mp-") as short:  # Ray's sockets allow paths of 107 bytes
        env = {key: value for key, value in environment().items() if not key.startswith("RAY_")}
        env |= {"HOME": short, "PATH": f"{_BIN}:{os.environ['PATH']}", "RAY_DISABLE_IMPORT_WARNING": "1"}
        subprocess.run([sys.executable, "-c", LOCAL_RUN], cwd=ROOT, env=env, timeout=START_S, check=True)
        token = (Path(short) / ".ray" / "auth_token").read_text()
        ports = [free_port() for _ in range(6)]
        names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
        names += ("metrics-export-port", "ray-client-server-port")
        command = ["--block", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
        command += ["--dashboard-host=127.0.0.1", f"--temp-dir={short}", f"--object-store-memory={256 * 2**20}"]
        command += [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
        script = ["bash", "-ec", f"{PREPARED}\nexec {HEAD} {shlex.join(command)}"]
        with (Path(short) / "head.log").open("wb") as log:
            process = subprocess.Popen(script, env=env, stdout=log, stderr=log, cwd=short, start_new_session=True)
        running = Head(process, f"http://127.0.0.1:{ports[1]}", token, env)
        try:
            _wait_until_jobs_are_taken(running, Path(short) / "head.log")
            yield running
        finally:
            _end(process)


@pytest.mark.timeout(900)
def test_job_stop_is_an_orderly_stop_and_the_job_that_is_submitted_again_goes_on_and_succeeds(
    head: Head, tmp_path: Path, tiny_policy: Path
) -> None:
    once = {"name": "job", "resume": "auto", "checkpoint_every": 1000}
    config = write_config(tmp_path, tiny_policy, run=once | {"iterations": 1000})
    submitted = head.submit("first", config, "--no-wait", timeout_s=START_S)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    _wait_for_first_iteration(head, "first", tmp_path)
    folder = _newest(tmp_path)
    assert head.ray("stop", "first").returncode == 0
    assert head.job("first")["status"] == "STOPPED"
    assert "exit 3: stopped" in folder.driver_log.read_text()
    assert "each takes 0.66 of one" in folder.driver_log.read_text()
    saved = checkpoint.newest_valid(folder.checkpoints)
    assert saved is not None
    assert saved.manifest.record.iteration == iterations(read_records(folder.metrics))[-1].iteration
    assert not [p.pid for p in psutil.process_iter() if str(folder.path) in _command(p)]

    done = saved.manifest.record.iteration
    write_config(tmp_path, tiny_policy, run=once | {"iterations": done + 1})
    again = head.submit("again", config, timeout_s=START_S)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"going on with {folder.run_id}" in again.stdout
    job = head.job("again")
    assert (job["status"], job["driver_exit_code"]) == ("SUCCEEDED", 0)
    assert list_runs(tmp_path / "runs") == [folder.run_id]
    assert [record.iteration for record in iterations(read_records(folder.metrics))] == [*range(1, done + 2)]


def _wait_until_jobs_are_taken(head: Head, log: Path) -> None:
    deadline, problem = time.monotonic() + START_S, ""
    while time.monotonic() < deadline:
        assert head.process.poll() is None, f"ray start ended: {log.read_text()}"
        listed = head.ray("list", timeout_s=START_S)
        if listed.returncode == 0:
            return
        problem = listed.stderr[-500:]
        time.sleep(0.5)
    raise AssertionError(f"the head took no jobs within {START_S} s: {problem}\n{log.read_text()}")


def _wait_for_first_iteration(head: Head, name: str, tmp_path: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert head.job(name)["status"] in ("PENDING", "RUNNING"), head.ray("logs", name).stdout
        if list_runs(tmp_path / "runs") and read_records(_newest(tmp_path).metrics):
            return
        time.sleep(0.3)
    raise AssertionError(f"no iteration within {START_S} s: {head.ray('logs', name).stdout}")


def _newest(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / list_runs(tmp_path / "runs")[-1])


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _end(head: subprocess.Popen[bytes]) -> None:
    """End the head and whatever it started."""
    family = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
    head.send_signal(signal.SIGTERM)
    try:
        head.wait(15)
    except subprocess.TimeoutExpired:
        head.kill()
        head.wait(5)
    for process in family:
        if is_alive(process):
            process.kill()
    _, left = psutil.wait_procs(family, timeout=10)
    assert not left, f"processes of the head live on: {left}"
