"""How much faster asynchronous training is: `make bench`. The same run with `max_staleness` 0 and then 2.

Run it on an idle machine: both runs compete for the same cores, and anything else on them shifts the ratio. The
environment sleeps 50 ms per step, as one behind a network would, so that there is something to overlap with.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path
from statistics import fmean

from milepost.cluster.runlog.records import IterationRecord, iterations, read_records
from milepost.cluster.runlog.runs import list_runs
from tests.conftest import write_tiny_policy
from tests.system.driving import MILEPOST, ROOT, environment, write_config

_TURNS, _DELAY_S, _WARM_UP = 4, 0.05, 3


def measure(place: Path, policy: Path, *, max_staleness: int, count: int) -> list[IterationRecord]:
    """The records of one run, without the first few iterations, which fill the pipeline."""
    place.mkdir()
    config = write_config(
        place,
        policy,
        run={"iterations": count + _WARM_UP, "max_staleness": max_staleness, "checkpoint_every": 1000},
        env={"options": {"turns": _TURNS, "delay_s": _DELAY_S}},
    )
    with (place / "output").open("wb") as output:
        command = [*MILEPOST, "train", str(config)]
        subprocess.run(command, cwd=ROOT, env=environment(), stdout=output, stderr=output, timeout=1800, check=True)
    folder = place / "runs" / list_runs(place / "runs")[-1]
    return iterations(read_records(folder / "metrics.jsonl"))[_WARM_UP - 1 :]


def rate(records: list[IterationRecord]) -> float:
    """Iterations per minute from the end of the first record to the end of the last."""
    return 60 * (len(records) - 1) / ((records[-1].time_s or 0.0) - (records[0].time_s or 0.0))


def main() -> None:
    """Run both, print one line each and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=30, help="measured iterations per run")
    count = parser.parse_args().iterations
    rates = {}
    with tempfile.TemporaryDirectory(prefix="mp-bench-") as place:
        policy = write_tiny_policy(Path(place) / "policy")
        for max_staleness in (0, 2):
            records = measure(Path(place) / f"eta-{max_staleness}", policy, max_staleness=max_staleness, count=count)
            rates[max_staleness] = rate(records)
            print(
                f"max_staleness {max_staleness}: {rates[max_staleness]:.1f} iterations/min, "
                f"rollouts and training overlap {fmean(r.both_busy_share or 0.0 for r in records):.1%} of the time, "
                f"{fmean(r.mixed_version_share or 0.0 for r in records):.1%} of responses carry two versions, "
                f"largest staleness {max(r.staleness_max for r in records)}"
            )
    print(f"asynchronous / synchronous: {rates[2] / rates[0]:.2f}")


if __name__ == "__main__":
    main()
