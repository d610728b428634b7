"""One whole run of a workload, by Milepost or by TRL, watched from outside: `python -m tests.benchmarks.whole_runs`.

Start-up, updates, CPU seconds and memory of all processes are read off the same way for both. A run that does not come
through ends the benchmark with what it said.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final, Literal

import msgspec
import pyarrow.parquet as pq
import tomli_w

from milepost.cluster.base.exits import Stopped
from milepost.cluster.evaluate import first_policy
from milepost.cluster.runlog.records import IterationRecord
from milepost.cluster.settings.config import load
from tests.benchmarks.figures import Run, Update, calm, calmest, publish_parts, stored_bytes, updates_of
from tests.benchmarks.process_tree import ProcessTree, StolenTime
from tests.benchmarks.workloads import WORKLOADS, Workload
from tests.system.driving import ROOT, Driver, start

TRL_PYTHON: Final = ROOT / ".venv-trl" / "bin" / "python"
_POLL_S = 0.5
_REPEATED = 3
_UPDATE_S, _RUN_S = 600.0, 3600.0
"""No update of a workload takes that long, nor does a start; and no run."""


class BenchmarkError(RuntimeError):
    """A run did not come through; says what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a workload is trained."""

    name: str
    peer: bool = False
    """By TRL."""
    max_staleness: int = 0
    threads: int = 1
    """Of each library that computes."""
    packing: Literal["auto", "padded"] = "auto"
    delay_s: float = 0.0
    """Of a step of the game."""
    warm_up: int = 2
    updates: int = 5
    """That count, of up to three times as many: as many as it takes until so many were left alone by the host. Every
    fifth one of Milepost estimates information, which takes time."""


WAYS: Final = {
    way.name: way
    for way in (
        Way(name="synchronous"),
        Way(name="asynchronous", max_staleness=2),
        Way(name="synchronous on 2 threads", threads=2),
        Way(name="padded rows", packing="padded"),
        Way(name="TRL", peer=True, threads=2, updates=2),
    )
}


def policy_of(workload: Workload, place: Path) -> Path:
    """The folder of the policy that all runs of a workload begin with, made below `place` where it is not there."""
    values = workload.config()
    values["run"] |= {"iterations": 1, "runs_dir": str(place)}
    path = place / f"{workload.name}.toml"
    path.write_text(tomli_w.dumps(values))
    return first_policy(load(path), lambda line: print(f"  {line}", flush=True))


def run(workload: Workload, policy: Path, way: Way) -> Run:
    """One run. Raises BenchmarkError."""
    with tempfile.TemporaryDirectory(prefix="mp-bench-") as place:
        return (_trl if way.peer else _milepost)(workload, policy, way, Path(place))


def _milepost(workload: Workload, policy: Path, way: Way, place: Path) -> Run:
    values = workload.config(delay_s=way.delay_s)
    most = way.warm_up + _REPEATED * way.updates
    values["run"] |= {"iterations": most, "max_staleness": way.max_staleness, "runs_dir": str(place / "runs")}
    values["model"] = {"source": "folder", "path": str(policy)}
    values["engine"]["num_threads"] = values["learner"]["threads"] = way.threads
    values["learner"]["packing"] = way.packing
    config = place / "run.toml"
    config.write_text(tomli_w.dumps(values))
    began = time.monotonic()
    driver = start(["train", str(config)], place / "runs", place / "output")
    tree, records, cpu_s, memory, start_s = ProcessTree(driver.process.pid), list[IterationRecord](), [], [], 0.0
    host, stolen, updates = StolenTime(), list[float](), list[Update]()
    try:
        while len(records) < most and len(calm(updates)) < way.updates:
            seen = len(records)
            records = _next_records(driver, seen, way)
            cpu_s += [tree.cpu_s()] * (len(records) - seen)
            stolen += [host.share()] * (len(records) - seen)
            memory.append(tree.memory_bytes())
            if not seen:
                start_s = time.monotonic() - began - (records[-1].time_s or 0.0)
            updates = updates_of(records, cpu_s, stolen, warm_up=way.warm_up)
        driver.process.terminate()
        if driver.process.wait(_UPDATE_S) not in (0, Stopped.code):
            raise BenchmarkError(f"{way.name}: the run ended with code {driver.process.returncode}:\n{driver.said()}")
        context_tokens, turns = _context(driver.folder.trajectories)
    finally:
        driver.kill()
    measured = records[way.warm_up :]
    return Run(
        updates=calmest(updates, way.updates), start_s=start_s, memory_bytes=max(memory), turns=turns,
        context_tokens=context_tokens, stored_bytes=stored_bytes(measured), publish_s=publish_parts(measured),
    )  # fmt: skip


def _next_records(driver: Driver, seen: int, way: Way) -> list[IterationRecord]:
    """All records, once there are more than `seen`."""
    deadline = time.monotonic() + _UPDATE_S
    while len(records := driver.records()) == seen:
        if driver.process.poll() is not None or time.monotonic() > deadline:
            raise BenchmarkError(f"{way.name}: the run ended or hung after update {seen}:\n{driver.said()}")
        time.sleep(_POLL_S)
    return records


def _context(trajectories: Path) -> tuple[float, float]:
    """Tokens of an episode's last prompt and response, and turns of an episode, on the mean."""
    columns = ["episode", "prompt_ids", "response_ids"]
    turns = [row for path in sorted(trajectories.glob("turns-*.parquet")) for row in _rows(path, columns)]
    episodes = len({row["episode"] for row in turns})
    tokens = sum(len(row["prompt_ids"]) + len(row["response_ids"]) for row in turns)
    return tokens / episodes, len(turns) / episodes


def _rows(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    return list(pq.read_table(path, columns=columns).to_pylist())


def _trl(workload: Workload, policy: Path, way: Way, place: Path) -> Run:
    most = way.warm_up + _REPEATED * way.updates
    command = [str(TRL_PYTHON), "-m", "tests.benchmarks.trl_peer", workload.name, str(policy)]
    command += ["--updates", str(most), "--delay-s", str(way.delay_s), "--threads", str(way.threads)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(place)}
    began, told, memory, start_s = time.monotonic(), list[dict[str, Any]](), list[int](), 0.0
    host, updates = StolenTime(), list[Update]()
    with (place / "errors").open("wb") as errors, _process(command, env, errors) as process:
        tree = ProcessTree(process.pid)
        for line in process.stdout or ():
            if not line.startswith('{"'):  # TRL's own summary is no JSON
                continue
            told.append(json.loads(line))
            memory.append(tree.memory_bytes())
            if len(told) == 1:
                start_s = time.monotonic() - began - told[0]["wall_s"]
            stolen = host.share()
            updates += [_update(told[-1], stolen)] if len(told) > way.warm_up else []
            if len(calm(updates)) == way.updates:
                break
    if len(updates) < way.updates:
        raise BenchmarkError(
            f"{way.name}: TRL ended after update {len(told)}:\n{(place / 'errors').read_text()[-4000:]}"
        )
    return Run(
        updates=calmest(updates, way.updates), start_s=start_s, memory_bytes=max(memory),
        turns=sum(each["turns"] for each in told) / sum(each["episodes"] for each in told),
        context_tokens=sum(each["tokens"] for each in told) / sum(each["episodes"] for each in told),
    )  # fmt: skip


@contextmanager
def _process(command: list[str], env: dict[str, str], errors: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """Ended with the block, and where it takes longer than any run may."""
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=errors, text=True)
    hung = threading.Timer(_RUN_S, process.kill)
    hung.start()
    try:
        yield process
    finally:
        hung.cancel()
        process.kill()
        process.wait()


def _update(told: dict[str, Any], stolen: float) -> Update:
    phases = {"rollout": told["rollout_s"], "train": told["wall_s"] - told["rollout_s"]}
    return Update(
        seconds=told["wall_s"], cpu_s=told["cpu_s"], episodes=told["episodes"], sampled=told["sampled"],
        stolen=stolen, phases=phases,
    )  # fmt: skip


def main() -> None:
    """One run; prints what was measured as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=tuple(WORKLOADS))
    parser.add_argument("way", choices=tuple(WAYS))
    parser.add_argument("--delay-s", type=float, default=0.0, help="seconds that a step of the game takes")
    parser.add_argument("--warm-up", type=int, default=2, help="updates that are left out (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=5, help="measured updates (default: %(default)s)")
    asked = parser.parse_args()
    way = replace(WAYS[asked.way], delay_s=asked.delay_s, warm_up=asked.warm_up, updates=asked.updates)
    workload = WORKLOADS[asked.workload]
    place = ROOT / ".cache" / "bench"
    place.mkdir(parents=True, exist_ok=True)
    print(msgspec.json.format(msgspec.json.encode(run(workload, policy_of(workload, place), way))).decode())


if __name__ == "__main__":
    main()
