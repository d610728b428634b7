"""One family in a real run: `milepost train` makes two updates of its tiny model, on the coin game."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milepost.cluster.runlog.runs import RunFolder
from milepost.envs.types import Turn, VersionSpan
from milepost.learner.zero.policy import load_policy
from tests.cluster.trajectories.recorded import rows
from tests.families.probe import gap
from tests.families.tiny_models import Family, write
from tests.system.driving import start, write_config

UPDATES = 2
DEADLINE_S = 1800
"""Half a minute on two idle cores; these runs are asked for by hand, also on busy machines."""
TRAINED = ("qwen2", "qwen3", "llama3", "gemma3", "phi", "phi3", "gpt2")
_SETTINGS: dict[str, dict[str, Any]] = {
    "run": {
        "iterations": UPDATES, "groups_per_iteration": 2, "max_staleness": 0, "checkpoint_every": 100,
        "eval_episodes": 4,
    },
    "env": {"options": {}},
    "engine": {"max_model_len": 256, "max_num_seqs": 16},
    "sampling": {"max_tokens": 16},
    "actors": {"concurrent_groups": 2, "env_threads": 8},
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """What a run left. A parity is the mean |log-prob of engine - of learner| in nats per token."""

    parity: dict[int, float]
    """By policy version: as the run measured it after each update; of version 0 by what its engine recorded."""
    saved: float
    """The policy that the run saved, against what the engine recorded with the last version."""
    moved: float
    """The model that the run began with, against the same: what the updates changed."""
    sampled_by: set[int]
    """Versions that sampled what was recorded."""
    largest_change: float
    """Of any weight."""


def train(family: Family, place: Path) -> Trained:
    """Train `family` in the folder `place`. Raises AssertionError, with all that was said, where the run fails."""
    place.mkdir()
    model = write(family, place / "model")
    driver = start(["train", str(write_config(place, model, **_SETTINGS))], place / "runs", place / "train.out")
    try:
        assert driver.end(DEADLINE_S) == 0, driver.said()
    finally:
        driver.kill()
    recorded = _recorded(driver.folder)
    old, new = load_policy(model).eval(), load_policy(driver.folder.policy).eval()
    pairs = zip(old.parameters(), new.parameters(), strict=True)
    measured = {each.policy_version: each.parity for each in driver.records() if each.parity is not None}
    return Trained(
        parity={0: gap(old, recorded[0])} | measured,
        saved=gap(new, recorded[UPDATES]),
        moved=gap(old, recorded[UPDATES]),
        sampled_by=set(recorded),
        largest_change=max(float((a - b).abs().max()) for a, b in pairs),
    )


def _recorded(folder: RunFolder) -> dict[int, list[Turn]]:
    """By version, the responses that it sampled alone."""
    found: dict[int, list[Turn]] = defaultdict(list)
    for row, prompt_ids in _with_prompts(rows(folder.trajectories, "turns")):
        spans = [VersionSpan(**span) for span in row["versions"]]
        if len(spans) == 1:
            turn = Turn(
                prompt_ids=prompt_ids,
                response_ids=row["response_ids"],
                logprobs=row["logprobs"],
                versions=spans,
                anchor="",
                action=None,
                next_anchor="",
                reward=0.0,
            )
            found[spans[0].version].append(turn)
    return dict(found)


def _with_prompts(turns: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Every recorded turn with its whole prompt."""
    seen: list[int] = []
    for row in turns:
        prompt_ids = (seen if row["continues"] else []) + row["prompt_ids"]
        seen = prompt_ids + row["response_ids"]
        yield row, prompt_ids
