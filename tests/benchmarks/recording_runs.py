"""What recording costs a run: `make bench-recording-runs`. The same run with and without it, in turns.

CPU seconds of all its processes are compared, since wall time tells more of what else the machine does. They are read
twice a second, so a process's last half second is not in them, in either kind of run.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import fmean

import psutil
import pyarrow.parquet as pq

from tests.system.driving import MILEPOST, ROOT, environment

_LOOK_S = 0.5
_KINDS = {"recorded": [], "not recorded": ["trajectories.max_bytes=0"]}


def cpu_seconds(arguments: list[str], out: Path) -> float:
    """Of `milepost <arguments>` and all that it starts. Raises CalledProcessError where it fails."""
    spent: dict[psutil.Process, float] = {}
    with out.open("wb") as file:
        command = [*MILEPOST, *arguments]
        with psutil.Popen(command, cwd=ROOT, env=environment(), stdout=file, stderr=file) as driver:
            while driver.poll() is None:
                for process in _tree(driver):
                    try:
                        used = process.cpu_times()
                        spent[process] = used.user + used.system
                    except psutil.Error:  # it has just ended
                        continue
                time.sleep(_LOOK_S)
    if driver.returncode:
        raise subprocess.CalledProcessError(driver.returncode, command, out.read_text())
    return sum(spent.values())


def _tree(driver: psutil.Popen) -> list[psutil.Process]:
    try:
        return [driver, *driver.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def main() -> None:
    """Run all, print a line each and the difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="deploy/configs/local.toml")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each kind")
    parser.add_argument("--set", action="append", default=["run.iterations=10", "run.eval_episodes=64"])
    chosen = parser.parse_args()
    spent: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    with tempfile.TemporaryDirectory(prefix="mp-bench-") as place:
        for number in range(chosen.pairs):
            for kind in [*_KINDS][:: -1 if number % 2 else 1]:
                runs = Path(place) / f"{kind}-{number}".replace(" ", "-")
                keys = [*chosen.set, *_KINDS[kind], f"run.runs_dir={runs}"]
                arguments = ["train", chosen.config, *(word for key in keys for word in ("--set", key))]
                spent[kind].append(cpu_seconds(arguments, Path(place) / "out"))
                files = runs.glob("*/trajectories/episodes-*.parquet")
                episodes = sum(pq.read_metadata(file).num_rows for file in files)
                print(f"{kind}: {spent[kind][-1]:.1f} CPU s, {episodes} episodes on the disk", flush=True)
    with_it, without = (fmean(spent[kind]) for kind in _KINDS)
    print(f"mean {with_it:.1f} CPU s with it, {without:.1f} without: {with_it / without - 1:+.2%}")


if __name__ == "__main__":
    main()
