"""Drive a real run from outside: write its config, start it, follow its metrics, find and end its processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from milepost.cluster.runlog.records import IterationRecord, iterations, read_records
from milepost.cluster.runlog.runs import RunFolder, list_runs

ROOT = Path(__file__).resolve().parents[2]
MILEPOST = [sys.executable, "-m", "milepost.cluster.cli"]
START_S = 300
"""Deadline of a system's start: 25 s on two idle cores, minutes where others compute beside it."""
_POLL_S = 0.2


def write_config(folder: Path, policy: Path, **sections: Any) -> Path:
    """A small asynchronous run on the coin game; `sections` are laid over it, a list of tables in place of a table."""
    values: dict[str, Any] = {
        "run": {
            "name": "e2e",
            "iterations": 8,
            "groups_per_iteration": 4,
            "group_size": 4,
            "max_staleness": 2,
            "eval_episodes": 0,
            "checkpoint_every": 2,
            "runs_dir": str(folder / "runs"),
        },
        "model": {"source": "folder", "path": str(policy)},
        "env": {"path": "tests.coin_env:CoinEnv", "options": {"delay_s": 0.03}, "train_size": 64, "heldout_size": 16},
        "engine": {"max_model_len": 512, "max_num_seqs": 32, "request_timeout_s": 240},
        "sampling": {"max_tokens": 48},
        "actors": {"concurrent_groups": 6, "env_threads": 24},
        "filter": {"method": "none"},
        "learner": {"lr": 1e-3},
    }
    for section, changed in sections.items():
        values[section] = changed if isinstance(changed, list) else values.get(section, {}) | changed
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(values))
    return path


def environment() -> dict[str, str]:
    """What our programs are started with, here and in a job."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


@dataclass
class Driver:
    """One `milepost train` process in a session of its own, as a terminal would start it."""

    process: subprocess.Popen[bytes]
    runs_dir: Path
    out: Path
    seen: set[psutil.Process] = field(default_factory=set)
    """Every process of the run that was ever looked at; they compare by pid and start time."""

    @property
    def folder(self) -> RunFolder:
        """The newest run of its folder."""
        return RunFolder(self.runs_dir / list_runs(self.runs_dir)[-1])

    def said(self) -> str:
        """Stdout, stderr and the run's own logs, for the message of a failed assertion."""
        logs = sorted(self.runs_dir.glob("*/logs/*.log"))
        told = [f"--- {path.name}\n{path.read_text(errors='replace')[-8000:]}" for path in logs]
        return "\n".join([self.out.read_text(), *told])

    def processes(self) -> set[psutil.Process]:
        """The driver's descendants now: Ray's, vLLM's, Redis."""
        found: set[psutil.Process] = set()
        try:
            found.update(psutil.Process(self.process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return found
        self.seen |= found
        return found

    def find(self, pattern: str) -> list[psutil.Process]:
        """Its living processes whose command line matches."""
        return [process for process in self.processes() if re.search(pattern, command_of(process))]

    def records(self) -> list[IterationRecord]:
        """The iterations of the history that survives."""
        runs = list_runs(self.runs_dir) if self.runs_dir.exists() else []
        return iterations(read_records(self.runs_dir / runs[-1] / "metrics.jsonl")) if runs else []

    def wait_for(self, what: str, reached: Callable[[], bool], deadline_s: float) -> None:
        """Wait until `reached`; fails at the deadline or when the driver ends before."""
        deadline = time.monotonic() + deadline_s
        while not reached():
            assert self.process.poll() is None, f"the driver ended before {what}:\n{self.said()}"
            assert time.monotonic() < deadline, f"waited {deadline_s:g} s for {what}:\n{self.said()}"
            self.processes()
            time.sleep(_POLL_S)

    def wait_for_iteration(self, number: int, deadline_s: float) -> None:
        """Wait until iteration `number` is in metrics.jsonl."""

        def reached() -> bool:
            return any(record.iteration >= number for record in self.records())

        self.wait_for(f"iteration {number}", reached, deadline_s)

    def end(self, deadline_s: float) -> int:
        """Wait for its end; returns the exit code."""
        deadline = time.monotonic() + deadline_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"the driver did not end within {deadline_s:g} s:\n{self.said()}"
            self.processes()
            time.sleep(_POLL_S)
        return self.process.returncode

    def left(self, deadline_s: float, besides: str = r"$^") -> list[str]:
        """Processes of the run, `besides` a pattern of commands, that still live `deadline_s` after its end."""
        deadline = time.monotonic() + deadline_s
        others = [p for p in self.seen if not re.search(besides, command_of(p))]
        while (living := [p for p in others if is_alive(p)]) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return [f"{process.pid}: {command_of(process)[:100]}" for process in living]

    def kill(self) -> None:
        """End whatever is left of it at once."""
        self.processes()
        for process in [*self.seen, psutil.Process(os.getpid())]:
            if process.pid != os.getpid() and is_alive(process):
                process.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


def start(arguments: list[str], runs_dir: Path, out: Path) -> Driver:
    """`milepost <arguments>` from the repository's root; its output goes to `out`."""
    with out.open("wb") as file:
        process = subprocess.Popen(
            [*MILEPOST, *arguments],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Driver(process, runs_dir, out)


def command_of(process: psutil.Process) -> str:
    """Its command line, empty once it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def surviving_commits(log: str) -> Iterator[tuple[int, list[str]]]:
    """Version and consumed groups of every commit that no later rollback undid, from a driver log."""
    history: dict[int, list[str]] = {}
    for line in log.splitlines():
        if found := re.search(r"version (\d+) consumed (.*)", line):
            history[int(found[1])] = found[2].split(", ")
        elif found := re.search(r"history goes on from version (\d+)", line):
            history = {version: groups for version, groups in history.items() if version <= int(found[1])}
    yield from history.items()
