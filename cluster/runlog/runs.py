"""The folder of one run: `runs/<id>/` with its config, metrics, checkpoints, policy, logs and report.

Paths, the status file that `milepost status` reads, and the lock that keeps two drivers out of one folder. What is in
the files belongs to the components that write them. The lock is advisory and per machine: it does not guard a folder
that two machines share over a network file system without flock.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.base.files import try_lock

_MAX_LISTED = 8


class Status(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the driver last said about itself. It does not say that the driver still lives: the lock does."""

    pid: int
    phase: str
    """A few words: `starting engines`, `training`, `evaluating`, `finished`, `failed: <why>`."""
    iteration: int = 0
    """Finished iterations."""
    iterations: int = 0
    ports: dict[str, int] = {}
    """Loopback ports by service, e.g. `{"metrics": 43121, "redis": 40117}`."""
    updated_at: str = ""
    """Local wall-clock time, ISO 8601. For people only; nothing computes with it."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The places of one run. Making the object touches nothing; `create`, `find` and `at` do the checking."""

    path: Path

    @property
    def run_id(self) -> str:
        """The folder's name, e.g. `20261121-061500-frozenlake`."""
        return self.path.name

    @property
    def resolved(self) -> Path:
        """The resolved configuration, TOML."""
        return self.path / "resolved.toml"

    @property
    def metrics(self) -> Path:
        """One JSON object per line: iterations and evaluations."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint, and `latest`."""
        return self.path / "checkpoints"

    @property
    def policy(self) -> Path:
        """The trained policy as a plain Hugging Face folder."""
        return self.path / "policy"

    @property
    def start(self) -> Path:
        """The policy that a resumed run started from, and that processes which are replaced start from."""
        return self.path / "start"

    @property
    def logs(self) -> Path:
        """`driver.log` and the logs of the services."""
        return self.path / "logs"

    @property
    def driver_log(self) -> Path:
        """Log and tracebacks of the driver process."""
        return self.logs / "driver.log"

    @property
    def output_log(self) -> Path:
        """What libraries and child processes of the driver wrote to stdout and stderr."""
        return self.logs / "output.log"

    @property
    def redis(self) -> Path:
        """Data of the embedded Redis server."""
        return self.path / "redis"

    @property
    def groups(self) -> Path:
        """The groups the run trained on, newest last, one per line of JSON."""
        return self.path / "groups.jsonl"

    @property
    def trajectories(self) -> Path:
        """Every episode, as Parquet."""
        return self.path / "trajectories"

    @property
    def report(self) -> Path:
        """The self-contained HTML report."""
        return self.path / "report.html"

    @property
    def status(self) -> Path:
        """The driver's last `Status`, JSON."""
        return self.path / "status.json"

    def write_status(self, status: Status) -> None:
        """Replace the status file atomically and stamp it with the wall-clock time."""
        stamped = msgspec.structs.replace(status, updated_at=datetime.now().isoformat(timespec="seconds"))
        scratch = self.path / f".status-{os.getpid()}.tmp"
        with removed_unless_done(scratch):
            scratch.write_bytes(msgspec.json.encode(stamped))
            os.replace(scratch, self.status)

    def read_status(self) -> Status | None:
        """The last status, or None before the driver has written one. Raises ConfigError if it cannot be read."""
        try:
            return msgspec.json.decode(self.status.read_bytes(), type=Status)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise ConfigError(f"{self.status}: {error}; delete the file, the driver writes it anew") from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this driver. Raises ConfigError at once if another process holds it.

        The kernel drops the lock when the process ends, however it ends.
        """
        with open(self.path / ".lock", "a", encoding="ascii") as file:
            if not try_lock(file.fileno()):
                raise ConfigError(f"run {self.run_id} is in use by another driver{self._owner()}")
            yield

    def keep_policy(self, saved: Path, version: int) -> None:
        """Make `policy/` the policy of a checkpoint, with its version beside it."""
        self._link(saved, self.policy, version)

    def keep_start(self, saved: Path, version: int) -> None:
        """Make `start/` the policy of a checkpoint, which may be pruned while the run still needs it."""
        self._link(saved, self.start, version)

    def _link(self, saved: Path, target: Path, version: int) -> None:
        """Put a policy in place of `target`, as links to the same files."""
        scratch = self.path / f".{target.name}-{os.getpid()}.tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        with removed_unless_done(scratch):
            shutil.copytree(saved, scratch, copy_function=os.link)
            (scratch / "milepost.json").write_text(json.dumps({"policy_version": version, "run": self.run_id}))
            _swap(scratch, target)

    def nothing_left(self, iterations: int) -> str | None:
        """What to say where the run finished all of its `iterations`; None where something is left to do."""
        status = self.read_status()
        if status is None or (status.phase, status.iteration) != ("finished", iterations):
            return None
        return f"{self.run_id} has done all of its {iterations} iterations: {_more(iterations)}"

    def is_driven(self) -> bool:
        """Whether a living driver holds the folder."""
        try:
            with self.lock():
                return False
        except ConfigError:
            return True

    def _owner(self) -> str:
        status = self.read_status()
        return f" (pid {status.pid}); stop it first or resume another run" if status else "; stop it first"


def _swap(new: Path, target: Path) -> None:
    """Put a folder in place of `target`, which is never there in part: who reads it may have begun before."""
    old = new.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.rename(target, old)
    try:
        os.replace(new, target)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def removed_unless_done(scratch: Path) -> Iterator[None]:
    """Take away a file or folder that could not be finished: names hold the process id, and would pile up."""
    try:
        yield
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise


def create(runs_dir: Path, name: str) -> RunFolder:
    """Make `runs_dir/<yyyymmdd-hhmmss>-<name>/` (mode 0700) with its sub-folders.

    Raises ConfigError if the folder cannot be made. Two runs of one second get different ids.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    try:
        runs_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for attempt in range(1, 100):
            folder = RunFolder(runs_dir / (f"{stamp}-{name}" if attempt == 1 else f"{stamp}-{name}-{attempt}"))
            with contextlib.suppress(FileExistsError):
                folder.path.mkdir(mode=0o700)
                for part in (folder.checkpoints, folder.logs, folder.redis):
                    part.mkdir(mode=0o700)
                return folder
    except OSError as error:
        raise ConfigError(
            f"cannot make a run folder in {runs_dir}: {error.strerror}; set run.runs_dir to a folder you can write"
        ) from error
    raise ConfigError(f"99 runs named {name!r} were started in {runs_dir} within this second; wait a second")


def refuse_fewer(folder: RunFolder, iterations: int, *, done: int) -> None:
    """Raises ConfigError where a run with a checkpoint of `done` iterations is to go on to fewer."""
    if iterations < done:
        raise ConfigError(f"run.iterations = {iterations}, but {folder.run_id} has done {done}: {_more(done)}")


def _more(done: int) -> str:
    return f"to go on, ask for more, e.g. --set run.iterations={2 * done}"


def find(runs_dir: Path, wanted: str) -> RunFolder:
    """The run that `wanted` names: `latest`, an id, the unambiguous end or start of an id, or a path.

    Raises ConfigError that lists the runs there are.
    """
    path = Path(wanted)
    if (path / "resolved.toml").is_file():
        return RunFolder(path.resolve())
    names = list_runs(runs_dir)
    if wanted == "latest" and names:
        return RunFolder((runs_dir / names[-1]).resolve())
    matches = [name for name in names if name == wanted]
    matches = matches or [name for name in names if name.startswith(wanted) or name.endswith(wanted)]
    if len(matches) == 1:
        return RunFolder((runs_dir / matches[0]).resolve())
    if len(matches) > 1:
        raise ConfigError(f"{wanted!r} names {len(matches)} runs: {_listing(matches)}; give the whole id")
    there = f"there are: {_listing(names)}" if names else "there are none yet"
    raise ConfigError(f"no run {wanted!r} in {runs_dir.resolve()}; {there}; give an id, a path or 'latest'")


def list_runs(runs_dir: Path) -> list[str]:
    """Ids of the runs in the folder, oldest first. A folder counts as a run once its resolved config is written."""
    return sorted(path.parent.name for path in runs_dir.glob("*/resolved.toml"))


def _listing(names: list[str]) -> str:
    shown = ", ".join(reversed(names[-_MAX_LISTED:]))
    hidden = len(names) - _MAX_LISTED
    return f"{shown} and {hidden} older" if hidden > 0 else shown
