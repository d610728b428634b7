"""Where results lie: a folder for each time that a suite was played, its episodes as Parquet beside the numbers."""

from __future__ import annotations

import os
import tempfile
from datetime import datetime
from pathlib import Path

import msgspec

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.evaluation.episodes import record
from milepost.cluster.evaluation.places import EVALUATIONS, FILE
from milepost.cluster.evaluation.results import PlayedSuite, Results, results_of
from milepost.cluster.evaluation.suite import Suite
from milepost.cluster.runlog import runs
from milepost.cluster.runlog.runs import RunFolder, removed_unless_done
from milepost.reward.evaluators.signals import Prices


def keep(suite: Suite, found: PlayedSuite, prices: Prices | None, *, parent: Path, policy: Path) -> Path:
    """Record and score what was played, in a folder of its own below `parent`; the path of the results.

    `policy` is the folder whose tokenizer it was played with. Raises ConfigError where the states of an episode make no
    chain, OSError where the disk refuses.
    """
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(tempfile.mkdtemp(prefix=f"{stamp}-{suite.name}-", dir=parent))
    with removed_unless_done(folder):
        recorded = record(found.trajectories, folder / "trajectories", policy)
        return write(results_of(suite, found, recorded, prices), folder)


def write(results: Results, folder: Path) -> Path:
    """Write the file of results into `folder`, whole or not at all; its path. Raises OSError where the disk refuses."""
    path, scratch = folder / FILE, folder / f".{FILE}-{os.getpid()}.tmp"
    with removed_unless_done(scratch):
        scratch.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))
        scratch.replace(path)
    return path


def read(path: Path) -> Results:
    """The results of a file, or of the folder it lies in. Raises ConfigError."""
    path = path / FILE if path.is_dir() else path
    try:
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; milepost eval --suite writes such a file") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: no results of a suite: {error}; milepost eval --suite writes them anew") from error


def _newest(run: RunFolder) -> Path:
    """The newest results of a run. Raises ConfigError where there are none."""
    found = sorted(run.path.glob(f"{EVALUATIONS}/*/{FILE}"))
    if not found:
        raise ConfigError(f"run {run.run_id} was played on no suite; milepost eval {run.run_id} --suite FILE does that")
    return found[-1]


def find(name: str, runs_dir: Path) -> Results:
    """The results that `name` means. Raises ConfigError."""
    return read(locate(name, runs_dir))


def locate(name: str, runs_dir: Path) -> Path:
    """The file of the results that `name` means: a file, its folder, or a run, whose newest ones count.

    Raises ConfigError.
    """
    path = Path(name)
    if (path / FILE).is_file():
        return path / FILE
    return path if path.is_file() else _newest(runs.find(runs_dir, name))
