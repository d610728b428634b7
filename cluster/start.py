"""What a run starts from: its newest checkpoint that verifies, or the first policy."""

from __future__ import annotations

from pathlib import Path

from milepost.cluster.config import RunConfig
from milepost.cluster.exits import ConfigError, DependencyLost
from milepost.cluster.observe import Observer
from milepost.cluster.runs import RunFolder
from milepost.learner import checkpoint
from milepost.learner.model import resolve


def newest_checkpoint(folder: RunFolder, observer: Observer) -> checkpoint.Found | None:
    """The newest checkpoint that verifies, None before the first one. Raises DependencyLost if none of them does."""
    try:
        found = checkpoint.newest_valid(folder.checkpoints)
    except checkpoint.CheckpointError as error:
        raise DependencyLost(f"{error}; restore one from a copy, or start a new run") from error
    for problem in found.problems if found else ():
        observer.note(f"checkpoint passed over: {problem}")
    return found


def first_policy(config: RunConfig, observer: Observer) -> Path:
    """The folder of the policy that a new run begins with. Raises ConfigError."""
    observer.phase("preparing the first policy")
    try:
        return resolve(config.model, config.env, Path(config.run.runs_dir) / "models", observer.note)
    except ValueError as error:
        raise ConfigError(str(error)) from error
