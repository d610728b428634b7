"""The audit trail of a registry: one JSON line per event, only ever appended to, each with the hash of the one before.

An event counts from the moment its whole line is on the disk; a line without its end was cut by a crash, and the next
writer takes it away. `audit.head` holds the number and hash of the last line, so that lines taken away from the end are
missed too. What is not found: a trail that was written anew as a whole, head included, by somebody who may write there.
Keep the hash that `milepost history` ends with in another place where that matters.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Final

import msgspec

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.runlog.runs import removed_unless_done

BEGINNING: Final = "0" * 64
"""What the first entry follows."""
_TRAIL, _HEAD = "audit.jsonl", "audit.head"
_WAY_OUT = "restore the registry from a copy, or begin another one with --registry"


class Lineage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a policy comes from and what it was judged by; all digests are SHA-256."""

    source: str
    """The run, or the model folder."""
    policy_version: int
    policy_sha256: str
    config_sha256: str | None
    """Of the run's resolved configuration; None for a model folder."""
    suite: str
    suite_sha256: str
    results_sha256: str
    """Of the file of results."""
    gate_sha256: str
    """Of the gate's file."""
    measured: dict[str, float]
    """What the gate can ask for, over all episodes."""


class Promoted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="promoted"):
    """A policy came through a gate and became the champion."""

    version: int
    """Of the registry, from 1; no two promotions share one."""
    replaced: int | None
    """The champion before it."""
    lineage: Lineage


class RolledBack(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="rolled_back"):
    """An earlier version became the champion again."""

    version: int
    left: int
    """The champion before that."""
    reason: str


class Refused(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="refused"):
    """A policy did not come through a gate."""

    source: str
    policy_version: int
    policy_sha256: str
    gate_sha256: str
    reasons: list[str]


class NotServed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="not_served"):
    """A server could not start the champion."""

    version: int
    reason: str


Event = Promoted | RolledBack | Refused | NotServed


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line."""

    number: int
    """From 1."""
    at: float
    """Seconds since 1970, by the clock of the machine that wrote it."""
    previous: str
    """SHA-256 of the line before, without its end."""
    event: Event


class _Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    entries: int
    sha256: str


def read(folder: Path) -> tuple[list[Entry], str]:
    """All entries, and the hash of the last one's line. Raises ConfigError that names an entry which was changed.

    No lock is needed: the head is read first, so the trail has at least what the head promises.
    """
    path, head = folder / _TRAIL, _read_head(folder)
    entries, hashes = list[Entry](), [BEGINNING]
    for number, line in enumerate(_lines(path), start=1):
        entry = _decoded(path, number, line)
        if entry.number != number:
            raise ConfigError(f"{path}: entry {number} is not where it should be, entry {entry.number} is; {_WAY_OUT}")
        if entry.previous != hashes[-1]:
            changed = max(1, number - 1)
            raise ConfigError(f"{path}: entry {changed} was changed: the next one follows another text; {_WAY_OUT}")
        entries.append(entry)
        hashes.append(_sha256(line))
    if len(entries) < head.entries:
        raise ConfigError(f"{path}: entry {len(entries) + 1} is gone, there were {head.entries}; {_WAY_OUT}")
    if hashes[head.entries] != head.sha256:
        raise ConfigError(f"{path}: entry {head.entries} was changed: {_HEAD} knows another text; {_WAY_OUT}")
    return entries, hashes[-1]


def append(folder: Path, event: Event) -> None:
    """Add an entry; it is on the disk when this returns. Hold the registry's lock.

    Raises ConfigError where the trail was tampered with, OSError where the disk refuses.
    """
    entries, last = read(folder)
    path, number = folder / _TRAIL, len(entries) + 1
    line = msgspec.json.encode(Entry(number=number, at=time.time(), previous=last, event=event))
    with path.open("ab") as file:
        file.truncate(path.read_bytes().rfind(b"\n") + 1)  # what a crash left of a line
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())
    _write_head(folder, _Head(entries=number, sha256=_sha256(line)))


def _lines(path: Path) -> list[bytes]:
    """Those that have their end."""
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []


def _decoded(path: Path, number: int, line: bytes) -> Entry:
    try:
        return msgspec.json.decode(line, type=Entry)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: entry {number} was changed: it is none of ours: {error}; {_WAY_OUT}") from error


def _read_head(folder: Path) -> _Head:
    path = folder / _HEAD
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Head)
    except FileNotFoundError:
        return _Head(entries=0, sha256=BEGINNING)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} was changed: {error}; {_WAY_OUT}") from error


def _write_head(folder: Path, head: _Head) -> None:
    path, scratch = folder / _HEAD, folder / f".{_HEAD}.tmp"
    with removed_unless_done(scratch):
        with scratch.open("wb") as file:
            file.write(msgspec.json.encode(head))
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    sync_names(folder)


def sync_names(folder: Path) -> None:
    """Have the disk know which files are in `folder`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
