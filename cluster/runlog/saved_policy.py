"""The policy that a run has saved: which version it is, its digest, and a hold on it while the run goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.base.files import file_sha256
from milepost.cluster.runlog.runs import RunFolder

_POLICY_RECORD = "milepost.json"
_PIN_TRIES = 10
_PIN_PAUSE_S = 0.1


def _policy_version(policy: Path) -> int:
    """The version that a saved policy folder says it is. Raises ConfigError."""
    try:
        return int(json.loads((policy / _POLICY_RECORD).read_text())["policy_version"])
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{policy} holds no policy of ours ({error}); train the run first") from error


def version_of(model: Path) -> int:
    """The version of a run's policy; 0 of a model folder of anybody's. Raises ConfigError."""
    return _policy_version(model) if (model / _POLICY_RECORD).exists() else 0


@contextlib.contextmanager
def pinned_policy(folder: RunFolder) -> Iterator[tuple[Path, int]]:
    """A run's policy and its version, as links that stay when a going run's next checkpoint replaces `policy/`.

    Raises ConfigError if there is no policy.
    """
    place = folder.path / f".pinned-{os.getpid()}.tmp"
    try:
        yield place, _pin(folder.policy, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _pin(policy: Path, place: Path) -> int:
    """Link `policy` to `place`, once more where it was replaced meanwhile; its version."""
    for tries_left in reversed(range(_PIN_TRIES)):
        shutil.rmtree(place, ignore_errors=True)
        try:
            version = _policy_version(policy)
            shutil.copytree(policy, place, copy_function=os.link)
            if _policy_version(policy) == version:
                return version
        except (ConfigError, OSError):
            if not tries_left:
                raise
        time.sleep(_PIN_PAUSE_S)
    raise ConfigError(f"{policy} was replaced {_PIN_TRIES} times while it was read; try again")


def digest(policy: Path) -> str:
    """SHA-256 over all files of a policy's folder, names and bytes, its record aside: 64 hex digits.

    Weights, tokenizer and chat template count; which run made it does not.
    """
    whole = hashlib.sha256()
    for path in sorted(path for path in policy.rglob("*") if path.is_file() and path.name != _POLICY_RECORD):
        whole.update(f"{path.relative_to(policy)}\0{file_sha256(path)}\n".encode())
    return whole.hexdigest()
