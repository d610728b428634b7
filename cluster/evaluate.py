"""How good a policy is: episodes on a split, played through the inference engine, outside the ledger.

The policy samples as it does in training, at `sampling.temperature`. Failed episodes are not failures of the policy:
they are counted apart, and too many of them are an error.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from milepost.cluster.config import RunConfig, load
from milepost.cluster.exits import ConfigError, DependencyLost
from milepost.cluster.preflight import check_world
from milepost.cluster.records import EvalRecord
from milepost.cluster.runs import RunFolder
from milepost.cluster.system import System
from milepost.envs.scenarios import ScenarioSet
from milepost.envs.types import Split, Task, Trajectory
from milepost.learner.model import resolve
from milepost.learner.pack import collate
from milepost.learner.policy import batch_logprobs, load_policy
from milepost.learner.sample import samples
from milepost.reward.evaluators import Summary, summarize

_FAILED_SHARE = 0.2
_PARITY_EPISODES = 8


def tasks_of(scenarios: ScenarioSet, split: Split, episodes: int) -> list[Task]:
    """`episodes` tasks of a split, each scenario as often as the others (up to one). Raises ConfigError if empty."""
    tasks = list(scenarios.tasks(split))
    if not tasks:
        raise ConfigError(f"split {split} is empty: set env.{split}_size")
    return [tasks[i % len(tasks)] for i in range(episodes)]


async def evaluate(system: System, split: Split, episodes: int) -> Summary:
    """Play and summarise.

    Raises ConfigError if a fifth of the episodes fails in the environment or the reward, DependencyLost if they fail
    elsewhere or no worker is left, WatchdogExpired at the deadline.
    """
    tasks = tasks_of(system.scenarios, split, episodes)
    results = await system.workers.play(tasks, system.config.run.stall_timeout_s)
    played = [result for result in results if isinstance(result, Trajectory)]
    failed = [result for result in results if not isinstance(result, Trajectory)]
    if len(failed) > _FAILED_SHARE * len(results):
        first = failed[0]
        cause = (
            f"{len(failed)} of {len(results)} evaluation episodes failed; the first in {first.boundary}: "
            f"{first.error}: {first.message}"
        )
        raise ConfigError(cause) if first.boundary in ("env", "reward") else DependencyLost(cause)
    return summarize(played)


def record(summary: Summary, *, split: Split, iteration: int, version: int, time_s: float) -> EvalRecord:
    """One line of metrics.jsonl."""
    return EvalRecord(
        iteration=iteration,
        policy_version=version,
        split=split,
        time_s=time_s,
        success=summary.success_rate,
        success_low=summary.success_low,
        success_high=summary.success_high,
        episodes=summary.episodes,
    )


def policy_version(policy: Path) -> int:
    """The version that a saved policy folder says it is. Raises ConfigError."""
    try:
        return int(json.loads((policy / "milepost.json").read_text())["policy_version"])
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{policy} holds no policy of ours ({error}); train the run first") from error


def evaluate_run(folder: RunFolder, *, split: Split, episodes: int) -> dict[str, Any]:
    """Evaluate a finished or stopped run's policy; what `milepost eval --json` prints."""
    version = policy_version(folder.policy)
    config = load(folder.resolved)

    async def go(scratch: RunFolder) -> Summary:
        system = System(config, scratch, check_world(config))
        try:
            await system.start(folder.policy, version, learner=None, phase=lambda _: None)
            return await evaluate(system, split, episodes)
        finally:
            await system.stop()

    started = time.monotonic()
    # A place of its own: the run may be going on, and its buffer is none of an evaluation's business.
    with tempfile.TemporaryDirectory(prefix="milepost-eval-") as place:
        summary = asyncio.run(go(RunFolder(Path(place))))
    return {
        "run": folder.run_id,
        "split": split,
        "success": summary.success_rate,
        "success_ci": [summary.success_low, summary.success_high],
        "episodes": summary.episodes,
        "policy_version": version,
        "mean_reward": summary.mean_reward,
        "mean_turns": summary.mean_turns,
        "invalid_share": summary.invalid_share,
        "seconds": time.monotonic() - started,
    }


def parity_sample(config: RunConfig) -> float:
    """Mean |log-prob of the learner's model - of the engine|, in nats per token, over a few episodes of the first
    policy.
    """
    model_folder = resolve(config.model, config.env, Path(config.run.runs_dir) / "models", print)

    async def go(scratch: RunFolder) -> list[Trajectory]:
        system = System(config, scratch, check_world(config))
        try:
            await system.start(model_folder, 0, learner=None, phase=lambda _: None)
            tasks = tasks_of(system.scenarios, "train", _PARITY_EPISODES)
            results = await system.workers.play(tasks, config.run.stall_timeout_s)
            return [result for result in results if isinstance(result, Trajectory)]
        finally:
            await system.stop()

    with tempfile.TemporaryDirectory(prefix="milepost-parity-") as place:
        played = asyncio.run(go(RunFolder(Path(place))))
    model = load_policy(model_folder).eval()
    gaps = []
    with torch.no_grad():
        for sample in (sample for t in played for sample in samples(t, [0.0] * len(t.turns))):
            batch = collate([sample])
            logprobs, _ = batch_logprobs(model, batch, config.sampling.temperature)
            gaps.append((logprobs - batch.rollout_logprobs)[batch.loss_mask].abs())
    return float(torch.cat(gaps).mean())
