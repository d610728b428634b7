"""The folder of an experiment: which runs of it there are, which have finished, and how the next one begins.

    runs/<id>/cells/<cell>.toml    the configuration of each cell, resolved
              logs/<cell>.out      what its process wrote
              <run id>/            its run folder, named after the cell
              results.json  table.md  curves.svg

Not promised: that a folder is an experiment's because it looks like one.
"""

from __future__ import annotations

from pathlib import Path

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.experiment.plan import Cell
from milepost.cluster.runlog.runs import RunFolder, list_runs
from milepost.cluster.settings import config as configs
from milepost.learner.zero import checkpoint

_STAMP_LENGTH = len("20261121-061500-")


def make(folder: Path) -> None:
    """Make the folder and its parts. Raises ConfigError if that cannot be done."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in (folder, folder / "cells", folder / "logs"):
            part.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(f"cannot make {folder}: {error.strerror}; give another --runs-dir") from error


def newest(runs_dir: Path, name: str) -> Path:
    """The newest experiment of that name. Raises ConfigError if there is none."""
    found = sorted(part.parent for part in runs_dir.glob("*/cells") if part.parent.name[_STAMP_LENGTH:] == name)
    if not found:
        raise ConfigError(f"there is no experiment {name!r} in {runs_dir.resolve()} to go on with; leave --resume out")
    return found[-1]


def newest_run(folder: Path, cell: Cell) -> RunFolder | None:
    """The newest run folder of a cell."""
    names = [name for name in list_runs(folder) if name[_STAMP_LENGTH:] == cell.name]
    return RunFolder(folder / names[-1]) if names else None


def is_finished(folder: Path, cell: Cell) -> bool:
    """Whether the newest run of a cell came to its planned end, final evaluation included."""
    run = newest_run(folder, cell)
    status = run.read_status() if run else None
    return status is not None and status.phase == "finished" and status.iteration == cell.run.run.iterations


def arguments(folder: Path, cell: Cell) -> list[str]:
    """Arguments of `milepost train`: from the newest checkpoint where there is one, else from the start."""
    path = folder / "cells" / f"{cell.name}.toml"
    configs.dump(cell.run, path)
    run = newest_run(folder, cell)
    if run is None:
        return [str(path)]
    try:
        found = checkpoint.newest_valid(run.checkpoints)
    except checkpoint.CheckpointError:
        return [str(path)]  # none of its checkpoints can be trusted: the cell starts again in a folder of its own
    return [str(path), "--resume", str(run.path)] if found else [str(path)]


def refuse_change(folder: Path, cell: Cell) -> None:
    """Raises ConfigError if the cell has a run that began with other values."""
    run = newest_run(folder, cell)
    if run is None:
        return
    old = configs.load(run.resolved)
    try:
        configs.refuse_change(old, cell.run)
    except ConfigError as error:
        raise ConfigError(
            f"cell {cell.name} began otherwise: {error}; or run the experiment without --resume"
        ) from error
    if old.run.iterations != cell.run.run.iterations:
        raise ConfigError(
            f"cell {cell.name} began with run.iterations = {old.run.iterations}, now it is {cell.run.run.iterations}; "
            "undo the change, or run the experiment without --resume"
        )
