"""What `milepost status` says of a run, from its files."""

from __future__ import annotations

from milepost.cluster.runlog.console import SPLITS, parts_in_words, plain_line, success_in_words
from milepost.cluster.runlog.records import evals, iterations, read_records
from milepost.cluster.runlog.runs import RunFolder


def status_lines(folder: RunFolder) -> list[str]:
    """What `milepost status` prints: what the run does or how it ended, and its last numbers.

    Raises ConfigError if a file of the run is damaged.
    """
    status, records = folder.read_status(), read_records(folder.metrics)
    lines = [f"run        {folder.path}"]
    if status is None:
        lines.append("phase      its driver has not reported yet")
    else:
        alive = f"driver pid {status.pid}" if folder.is_driven() else "no driver is running"
        lines.append(f"phase      {status.phase} ({alive}, last report {status.updated_at})")
        lines.append(f"iteration  {status.iteration} of {status.iterations}")
        lines += [f"port       {service} 127.0.0.1:{port}" for service, port in status.ports.items()]
    done = iterations(records)
    if done:
        lines.append(
            f"last       {plain_line(done[-1], iterations=status.iterations if status else done[-1].iteration)}"
        )
        counts = ", ".join(f"{count} {state}" for state, count in done[-1].ledger.items() if count)
        lines += [f"ledger     {counts} (episodes)"] if counts else []
    for split in SPLITS:
        lines += [
            f"eval       {split}: {success_in_words(found)} at iteration {found.iteration}{parts_in_words(found.envs)}"
            for found in evals(records, split)[-1:]
        ]
    return lines
