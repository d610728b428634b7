"""A folder of policies that came through a gate, and which of them is the champion.

`versions/<n>/` holds a copy of the policy, the results and the gate that it came through, and the run's configuration;
the audit trail (`trail.py`) says the rest: the champion is what its entries come to. So a promotion counts with its
entry and not before: a process that is killed in the middle leaves the old champion, and what it had copied is taken
away by the next writer. One writer at a time, by a lock of this machine: it does not guard a folder on a network file
system without flock.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.base.files import file_sha256, try_lock
from milepost.cluster.registry import trail
from milepost.cluster.registry.trail import Entry, Event, Lineage, Promoted, RolledBack
from milepost.cluster.runlog.runs import removed_unless_done
from milepost.cluster.runlog.saved_policy import digest

CONFIG: Final = "resolved.toml"
RESULTS: Final = "results.json"
_GATE, _POLICY, _STAGED = "gate.toml", "policy", ".staged-"
_LOCK_WAIT_S, _LOCK_POLL_S = 30.0, 0.1


@dataclass(frozen=True, slots=True)
class State:
    """What the trail says."""

    entries: list[Entry]
    last_sha256: str
    """Of the last entry's line."""

    @property
    def promotions(self) -> dict[int, Promoted]:
        """By version."""
        return {entry.event.version: entry.event for entry in self.entries if isinstance(entry.event, Promoted)}

    @property
    def champion(self) -> int | None:
        """The version that the last promotion or rollback put there; None before the first one."""
        put = [entry.event.version for entry in self.entries if isinstance(entry.event, Promoted | RolledBack)]
        return put[-1] if put else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Files that a version keeps beside its policy."""

    results: Path
    gate: Path
    config: Path | None
    """The run's resolved configuration."""


class Registry:
    """Making the object touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self) -> None:
        """Make the folder, where it is not there. Raises OSError."""
        (self.path / "versions").mkdir(mode=0o700, parents=True, exist_ok=True)

    def state(self) -> State:
        """What the trail says, which needs no lock. Raises ConfigError where it was tampered with."""
        return State(*trail.read(self.path))

    def folder(self, version: int) -> Path:
        """Where a version lies."""
        return self.path / "versions" / str(version)

    def verified_policy(self, version: int) -> Path:
        """The folder of a version's policy. Raises ConfigError unless it and what lies beside it are what was kept."""
        promoted = self.state().promotions.get(version)
        if promoted is None:
            raise ConfigError(f"{self.path} has no version {version}; milepost policies lists those there are")
        lineage, folder = promoted.lineage, self.folder(version)
        _require_digest(folder / _POLICY, lineage.policy_sha256)
        kept = {RESULTS: lineage.results_sha256, _GATE: lineage.gate_sha256, CONFIG: lineage.config_sha256}
        for name, sha256 in kept.items():
            if sha256 is not None and file_sha256(folder / name) != sha256:
                raise _changed(folder / name, "it is not the file that was kept")
        return folder / _POLICY

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only writer. Raises ConfigError without a registry, or where another writer takes half a minute.

        The kernel drops the lock when the process ends, however it ends.
        """
        if not self.path.is_dir():
            raise ConfigError(f"there is no registry {self.path}; milepost promote RUN --gate FILE begins one")
        with open(self.path / ".lock", "a", encoding="ascii") as file:
            deadline = time.monotonic() + _LOCK_WAIT_S
            while not try_lock(file.fileno()):
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"{self.path} is in use by another writer for {_LOCK_WAIT_S:g} s; wait until that is done"
                    )
                time.sleep(_LOCK_POLL_S)
            yield

    def record(self, event: Event) -> None:
        """Add an event to the trail. Hold the lock."""
        trail.append(self.path, event)

    def promote(self, policy: Path, evidence: Evidence, lineage: Lineage) -> int:
        """Keep a policy as a new version and make it the champion; the version. Hold the lock.

        Raises ConfigError where the copy has another digest than the lineage says, OSError where the disk refuses.
        """
        state = self.state()
        version = len(state.promotions) + 1
        for left in [*self.path.glob(f"{_STAGED}*"), self.folder(version)]:  # of who was killed in the middle
            shutil.rmtree(left, ignore_errors=True)
        staged = self.path / f"{_STAGED}{os.getpid()}"
        with removed_unless_done(staged):
            # A copy and not a link: what writes into the original later would write into this one.
            shutil.copytree(policy, staged / _POLICY)
            _require_digest(staged / _POLICY, lineage.policy_sha256)
            for source, name in ((evidence.results, RESULTS), (evidence.gate, _GATE), (evidence.config, CONFIG)):
                if source is not None:
                    shutil.copyfile(source, staged / name)
            _sync(staged)
            staged.rename(self.folder(version))
            trail.sync_names(self.path / "versions")
        self.record(Promoted(version=version, replaced=state.champion, lineage=lineage))
        return version

    def roll_back(self, to: int | None, reason: str) -> RolledBack:
        """Make version `to` the champion again, or else the one that the champion replaced. Hold the lock.

        Raises ConfigError where there is no such version, or its policy is no longer what was promoted.
        """
        state = self.state()
        if (left := state.champion) is None:
            raise ConfigError(f"{self.path} has no champion; milepost promote makes one")
        version = state.promotions[left].replaced if to is None else to
        if version is None:
            raise ConfigError(f"{self.path}: version {left} is the first champion; there is none to go back to")
        if version == left:
            raise ConfigError(f"{self.path}: version {left} is the champion already")
        self.verified_policy(version)
        event = RolledBack(version=version, left=left, reason=reason)
        self.record(event)
        return event


def _require_digest(policy: Path, sha256: str) -> None:
    if (found := digest(policy)) != sha256:
        raise _changed(policy, f"its files hash to {found[:12]} and not to {sha256[:12]}")


def _changed(path: Path, how: str) -> ConfigError:
    return ConfigError(f"{path} was changed: {how}; restore it from a copy, or go back to another version")


def _sync(folder: Path) -> None:
    """Have all files below `folder` on the disk, and their names."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            trail.sync_names(path)
    trail.sync_names(folder)
