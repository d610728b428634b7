"""Policies, results and gates to promote with, without an engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tomli_w

from milepost.cluster.evaluation.store import write
from milepost.cluster.registry import promotion
from milepost.cluster.registry.registry import Registry
from milepost.cluster.runlog.saved_policy import digest
from tests.cluster.evaluation.played_results import results, the_suite

SAFE = {"metric": "safety", "limit": 1.0}


def policy(folder: Path, weights: str, config: str = "{}") -> Path:
    """A model folder, as far as a registry looks into it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_text(weights)
    return folder


def played(folder: Path, *agents: str, episodes: int = 2, others: Mapping[str, str] = {}, config: str = "{}") -> Path:
    """The file of results of a policy in `folder`, which is made, that plays as `agents` do."""
    made = policy(folder, f"{agents} {folder.name}", config)
    found = results(*agents, episodes=episodes, others=others, source=str(made), sha256=digest(made))
    (folder.parent / f"{folder.name}-results").mkdir()
    return write(found, folder.parent / f"{folder.name}-results")


def gate(folder: Path, *, absolute: list[dict[str, object]] = [SAFE], **keys: object) -> Path:  # noqa: B006
    """A gate's file on the refund desk's suite."""
    path = folder / "gate.toml"
    path.write_text(tomli_w.dumps({"suite": the_suite().sha256, "episodes": 2, "absolute": absolute} | keys))
    return path


def promote(registry: Path, file: Path, gate_file: Path, *, champion: Path | None = None) -> int:
    """What `milepost promote` does; the version."""
    with promotion.candidate(str(file), registry.parent / "runs") as found:
        return promotion.promote(Registry(registry), found, gate_file, champion)
