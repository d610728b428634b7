"""Which run a configuration with `run.resume = "auto"` goes on with.

For jobs that are submitted or retried as they are: the first one makes the run, the next ones go on with it. Not
promised: that nobody drives the run at that moment; the run folder's lock says so.
"""

from __future__ import annotations

from pathlib import Path

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.runlog.runs import RunFolder, list_runs
from milepost.cluster.settings.config import RunConfig, config_hash, load


def newest_run(config: RunConfig) -> RunFolder | None:
    """The newest run in `run.runs_dir` whose resumption `config` may be; None where there is none.

    A run is another one where its name, its seed or any other value that shapes what is learnt differs.
    """
    runs_dir, wanted = Path(config.run.runs_dir), config_hash(config)
    for run_id in reversed(list_runs(runs_dir)):
        folder = RunFolder((runs_dir / run_id).resolve())
        try:
            is_same = f"-{config.run.name}" in run_id and config_hash(load(folder.resolved)) == wanted
        except ConfigError:
            continue  # of another version of Milepost, whose values cannot be compared
        if is_same:
            return folder
    return None
