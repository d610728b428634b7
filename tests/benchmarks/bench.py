"""`make bench`: measures, and writes docs/performance.md and its picture from what was measured.

Sections are measured one after the other on an idle machine and kept below .cache/bench; `--only` measures some of them
again, and the page is written from all there are. In a section of whole runs the ways to train take turns, and the
first one is measured again at the end: how far its runs lie apart says how steady the machine was.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Final

import msgspec

from milepost.actors.engine import EngineConfig, environment
from milepost.cluster.pools.learners import ALLOCATOR
from tests.benchmarks import buffer
from tests.benchmarks.figures import Machine, Pass, Section, rate, stolen_share
from tests.benchmarks.page import PAGE, PICTURE, page
from tests.benchmarks.picture import picture
from tests.benchmarks.whole_runs import TRL_PYTHON, WAYS, BenchmarkError, Way, policy_of, run
from tests.benchmarks.workloads import WORKLOADS
from tests.system.driving import ROOT

PLACE: Final = ROOT / ".cache" / "bench"
_LONGEST_S = 1800.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A section of whole runs."""

    workload: str
    ways: tuple[Way, ...]
    has_ceilings: bool = True

    def order(self, rounds: int) -> list[Way]:
        """In which the runs are made."""
        return [*self.ways * rounds, self.ways[0]]


def _changed(names: Sequence[str], **values: Any) -> tuple[Way, ...]:
    return tuple(replace(WAYS[name], **values) for name in names)


_STEADY = ("synchronous", "asynchronous", "synchronous on 2 threads")
PLANS: Final = {
    "short": Plan("short", tuple(WAYS.values())),
    "slow": Plan("short", _changed(("synchronous", "asynchronous", "TRL"), delay_s=0.2), has_ceilings=False),
    "long-prompt": Plan(
        "long-prompt",
        (
            *_changed(_STEADY),
            *_changed(("padded rows",), warm_up=1, updates=2),  # an update of these two takes a minute
            *_changed(("TRL",), warm_up=1, updates=1),
        ),
    ),
}
GPU_TABLE: Final = ROOT / ".cache" / "gpu_check" / "gpu_check.md"
_ON_A_CPU = "Card: none"


class Progress:
    """Says what is measured, and how long the rest takes, as far as what is done tells."""

    def __init__(self, jobs: int) -> None:
        self._jobs, self._done, self._began = jobs, 0, time.monotonic()

    def __call__(self, what: str) -> None:
        """Before each job."""
        spent = time.monotonic() - self._began
        left = f", about {spent / self._done * (self._jobs - self._done) / 60:.0f} min left" if self._done else ""
        print(f"{self._done + 1} of {self._jobs}: {what}{left}", flush=True)
        self._done += 1


def measure(name: str, rounds: int, progress: Callable[[str], None]) -> Section:
    """A section of whole runs, with its ceilings. Raises BenchmarkError."""
    plan = PLANS[name]
    workload = WORKLOADS[plan.workload]
    progress(f"{name}: the policy")
    policy, section = policy_of(workload, PLACE), Section(machine=_machine())
    if plan.has_ceilings:
        section.ceilings = _ceilings(name, plan.workload, policy, progress)
    for way in plan.order(rounds):
        if way.peer and not TRL_PYTHON.exists():
            progress(f"{name}: {way.name} is left out, .venv-trl is not there: make bench-trl")
            continue
        progress(f"{name}: {way.name}")
        found = run(workload, policy, way)
        told = f"{rate(found.updates):.2f} episodes/s, {stolen_share(found.updates):.1%} of the CPU time went to others"
        print(f"  {told}", flush=True)
        section.runs.setdefault(way.name, []).append(found)
    return section


def _ceilings(name: str, workload: str, policy: Path, progress: Callable[[str], None]) -> dict[str, list[Pass]]:
    config, episodes = WORKLOADS[workload].config()["engine"], PLACE / f"{workload}-episodes.json"
    envs = {"engine": environment(EngineConfig(**config)), "step": {"OMP_NUM_THREADS": "1", **ALLOCATOR}}
    del envs["engine"]["MILEPOST_ENGINE"]  # that is for processes that Ray starts
    found = {}
    for part, env in envs.items():
        progress(f"{name}: the {part} alone")
        told = _lines(["tests.benchmarks.ceilings", part, workload, str(policy), str(episodes)], env)
        found[part] = [msgspec.json.decode(line, type=Pass) for line in told]
    return found


def _learner(progress: Callable[[str], None]) -> Section:
    progress("the learner's step, rows padded against prefix trees")
    told = _lines(["tests.benchmarks.learner", "--steps", "2", "--json"], {"OMP_NUM_THREADS": "1", **ALLOCATOR})
    return Section(machine=_machine(), learner=msgspec.json.decode(told[-1], type=dict[str, dict[str, float]]))


def _buffer(progress: Callable[[str], None]) -> Section:
    progress("the replay buffer beside a bare Redis")
    return Section(machine=_machine(), buffer=buffer.measure())


PARTS: Final = {"learner": _learner, "buffer": _buffer}
"""The other sections."""


def _lines(module: Sequence[str], env: dict[str, str]) -> list[str]:
    """The JSON objects that a module of ours prints."""
    command = [sys.executable, "-m", *module]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | env, stdout=subprocess.PIPE, text=True, timeout=_LONGEST_S, check=True
    )
    return [line for line in done.stdout.splitlines() if line.startswith("{")]


def _machine() -> Machine:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), "")
    return Machine(cores=len(os.sched_getaffinity(0)), cpu=cpu, day=date.today().isoformat())


def main() -> None:
    """Measure the sections asked for, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = (*PLANS, *PARTS)
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="sections (default: all)")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each way but the first (default: %(default)s)")
    parser.add_argument("--page", action="store_true", help="only write the page, from what was measured before")
    asked = parser.parse_args()
    PLACE.mkdir(parents=True, exist_ok=True)
    chosen = () if asked.page else asked.only
    jobs = {name: 1 + 2 * plan.has_ceilings + len(plan.order(asked.rounds)) for name, plan in PLANS.items()}
    progress = Progress(sum(jobs.get(name, 1) for name in chosen))
    for name in chosen:
        try:
            found = PARTS[name](progress) if name in PARTS else measure(name, asked.rounds, progress)
        except BenchmarkError as error:
            sys.exit(f"make bench: {name}: {error}")
        (PLACE / f"{name}.json").write_bytes(msgspec.json.encode(found))
    kept = {name: PLACE / f"{name}.json" for name in names}
    sections = {
        name: msgspec.json.decode(path.read_bytes(), type=Section) for name, path in kept.items() if path.exists()
    }
    PICTURE.write_text(picture(sections))
    gpu_table = GPU_TABLE.read_text() if GPU_TABLE.exists() else ""
    PAGE.write_text(page(sections, "" if _ON_A_CPU in gpu_table else gpu_table))
    print(f"{PAGE.relative_to(ROOT)} and {PICTURE.relative_to(ROOT)} are written")


if __name__ == "__main__":
    main()
