"""Checkpoints that are whole or absent: staged, hashed, renamed; verified before anything is deserialised.

A checkpoint is a folder `<root>/<tag>` with a MANIFEST.json that names every file with size and SHA-256. Every rank
writes into one staging folder, rank 0 hashes and publishes it with one rename. Shards are pickles, thus code: loading
starts with `newest_valid`, which trusts nothing it has not hashed. The hashes find damage and unfinished writes; they
don't stop somebody who can write to the folder and recompute them, hence its mode 0700.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

SCHEMA: Final = 1
MANIFEST: Final = "MANIFEST.json"
LATEST: Final = "latest"
TAG_PATTERN: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,100}")
STAGING_PREFIX: Final = ".tmp-"
_STEP: Final = "step-"
PACKAGES: Final = ("torch", "deepspeed", "transformers", "safetensors", "numpy")


class CheckpointError(Exception):
    """A checkpoint can't be written or none can be trusted; the message says which and why."""


class FileFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size in bytes and SHA-256 in hex of one file."""

    size: int
    sha256: str


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint is a checkpoint of."""

    run_id: str
    iteration: int
    policy_version: int
    config_hash: str
    versions: dict[str, str]
    """Package -> version that wrote it, see `package_versions`."""
    consumed: dict[str, str]
    """Group id -> outcome in the ledger, of the groups of the update that this saves; empty if they are committed."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The record and every file of the folder by its relative path. `digest` covers all other fields."""

    schema: int
    record: Record
    files: dict[str, FileFacts]
    digest: str


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint whose every byte was verified, and what was wrong with those passed over on the way."""

    path: Path
    manifest: Manifest
    problems: tuple[str, ...]


def package_versions() -> dict[str, str]:
    """Installed versions of the packages whose formats a checkpoint depends on."""
    return {name: version(name) for name in PACKAGES}


def tag_of(iteration: int) -> str:
    """Tags sort by iteration: `tag_of(7) == "step-00000007"`."""
    return f"{_STEP}{iteration:08d}"


def newest_iteration(root: Path) -> int:
    """Iterations that the newest checkpoint is of, by the names alone; 0 where there is none. Nothing is verified."""
    numbers = [int(tag.removeprefix(_STEP)) for tag in _tags(root) if re.fullmatch(rf"{_STEP}\d+", tag)]
    return max(numbers, default=0)


def prepare(root: Path, tag: str, *, writer: int) -> Path:
    """The staging folder for `tag`; every rank may call it. `writer` is one number all ranks share (rank 0's pid).

    Raises:
        CheckpointError: the tag is not a plain name.
    """
    _check_tag(tag)
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    staged = root / f"{STAGING_PREFIX}{tag}-{writer}"
    staged.mkdir(exist_ok=True, mode=0o700)
    return staged


def discard_unfinished(root: Path) -> None:
    """Delete what writers left that failed or were killed. For one process at a time, while no rank is writing."""
    for leftover in root.glob(f"{STAGING_PREFIX}*"):
        shutil.rmtree(leftover)


def publish(staged: Path, tag: str, record: Record) -> Path:
    """Hash what the ranks wrote into `staged` and make it the latest checkpoint `tag`; rank 0 alone, after all wrote.

    A crash at any moment leaves `latest` on a whole checkpoint. A checkpoint of the same tag, left by a run that went
    on from an older one, is replaced.

    Raises:
        CheckpointError: nothing was written, or `staged` is not a staging folder of `tag`.
        OSError: the disk is full or broken; the previous checkpoint is untouched.
    """
    _check_tag(tag)
    root = staged.parent
    if not staged.name.startswith(f"{STAGING_PREFIX}{tag}-"):
        raise CheckpointError(f"{staged} is no staging folder of {tag!r}; get one from prepare()")
    files = {}
    for path in _files(staged):
        _sync(path)
        files[path.relative_to(staged).as_posix()] = _facts(path)
    if not files:
        raise CheckpointError(f"{staged} is empty; every rank must save into it before it is published")
    _write(staged / MANIFEST, msgspec.json.format(msgspec.json.encode(_manifest(record, files))))
    for folder in [*(path for path in staged.rglob("*") if path.is_dir()), staged]:
        _sync(folder)
    target = root / tag
    if target.exists():
        _discard(target)
    staged.rename(target)
    _sync(root)
    if (root / LATEST).is_dir() and not (root / LATEST).is_symlink():  # somebody's copy: it is none of ours to delete
        (root / LATEST).rename(root / f".{LATEST}-folder")
    _write(root / f".{LATEST}.tmp", tag.encode())
    os.replace(root / f".{LATEST}.tmp", root / LATEST)
    _sync(root)
    return target


def prune(root: Path, *, keep: int) -> list[str]:
    """Delete all but the `keep` newest checkpoints, never the latest, and what crashes left; returns the tags deleted.

    For one process at a time, and not while a rank is writing.
    """
    discard_unfinished(root)
    latest = _read_latest(root) if (root / LATEST).is_file() else None
    old = [tag for tag in _tags(root)[max(keep, 1) :] if tag != latest]
    for tag in old:
        _discard(root / tag)
    return old


def newest_valid(root: Path) -> Found | None:
    """The checkpoint `latest` names or, if it can't be trusted, the newest one that can; None if there is none at all.

    Nothing is deserialised but the manifest, as strict JSON.

    Raises:
        CheckpointError: there are checkpoints, but not one is valid; lists why. A fresh start is then for a person to
            ask for, by another folder.
    """
    problems: list[str] = []
    candidates = _tags(root)
    if (root / LATEST).exists() or (root / LATEST).is_symlink():
        try:
            latest = _read_latest(root)
            candidates = [latest, *(tag for tag in candidates if tag != latest)]
        except CheckpointError as error:
            problems.append(str(error))
    for tag in candidates:
        try:
            return Found(root / tag, verify(root / tag), tuple(problems))
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError(f"no valid checkpoint in {root}: " + "; ".join(problems))
    return None


def verify(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose files are all there, unchanged, and the only ones.

    Raises:
        CheckpointError: the first thing that is wrong, with the file's name.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise CheckpointError(f"{folder.name}: no such folder")
    manifest = _read_manifest(folder)
    found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    if strangers := sorted(found.keys() - manifest.files.keys()):
        raise CheckpointError(f"{folder.name}: {strangers[0]} is not in the manifest")
    for name, expected in manifest.files.items():
        if name not in found:
            raise CheckpointError(f"{folder.name}: {name} is missing")
        size = found[name].stat().st_size
        if size != expected.size:
            raise CheckpointError(f"{folder.name}: {name} has {size} bytes, the manifest says {expected.size}")
        if _facts(found[name]) != expected:
            raise CheckpointError(f"{folder.name}: {name} has another SHA-256 than the manifest says")
    return manifest


def _manifest(record: Record, files: dict[str, FileFacts]) -> Manifest:
    body = msgspec.json.encode([SCHEMA, record, files], order="deterministic")
    return Manifest(schema=SCHEMA, record=record, files=files, digest=hashlib.sha256(body).hexdigest())


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise CheckpointError(f"{folder.name}: {MANIFEST} is missing")
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except msgspec.MsgspecError as error:
        raise CheckpointError(f"{folder.name}: {MANIFEST} is not readable: {error}") from error
    if manifest.schema != SCHEMA:
        raise CheckpointError(f"{folder.name}: {MANIFEST} has schema {manifest.schema}, this program reads {SCHEMA}")
    if manifest != _manifest(manifest.record, manifest.files):
        raise CheckpointError(f"{folder.name}: {MANIFEST} was edited, its digest does not fit")
    return manifest


def _read_latest(root: Path) -> str:
    """The tag that `latest` holds: a plain name of a folder right in `root`."""
    if (root / LATEST).is_symlink():
        raise CheckpointError(f"{LATEST} is a link, not a file")
    if not (root / LATEST).is_file():
        raise CheckpointError(f"{LATEST} is a folder, not a file")
    tag = (root / LATEST).read_bytes()[:200].decode(errors="replace").strip()
    if not TAG_PATTERN.fullmatch(tag):
        raise CheckpointError(f"{LATEST} holds {tag!r}, not a checkpoint's name")
    if (root / tag).resolve().parent != root.resolve():
        raise CheckpointError(f"{LATEST} holds {tag!r}, which leads out of {root}")
    return tag


def _check_tag(tag: str) -> None:
    if not TAG_PATTERN.fullmatch(tag) or tag == LATEST:
        raise CheckpointError(f"{tag!r} is no checkpoint name: use letters, digits, '_', '-' and '.', no leading dot")


def _tags(root: Path) -> list[str]:
    """Names of published checkpoints, newest first; staging folders start with a dot."""
    if not root.is_dir():
        return []
    folders = [path.name for path in root.iterdir() if path.is_dir() and not path.is_symlink() and path.name != LATEST]
    return sorted((name for name in folders if TAG_PATTERN.fullmatch(name)), reverse=True)


def _files(folder: Path) -> Iterator[Path]:
    """All files below `folder` but its manifest, by name; a link could lead anywhere and is refused."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise CheckpointError(f"{folder.name}: {path.relative_to(folder)} is a link")
        if path.is_file() and path != folder / MANIFEST:
            yield path


def _facts(path: Path) -> FileFacts:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileFacts(path.stat().st_size, digest)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Push a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(checkpoint: Path) -> None:
    """Delete a checkpoint so that no half of it can be taken for one."""
    doomed = checkpoint.with_name(f"{STAGING_PREFIX}{checkpoint.name}-discarded-{os.getpid()}")
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)
