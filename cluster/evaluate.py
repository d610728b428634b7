"""How good a policy is: episodes on a split, played through the inference engine, outside the ledger.

The policy samples as it does in training, at `sampling.temperature`. Failed episodes are not failures of the policy:
where they are many they are played again, and only if they go on failing they are an error.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch

from milepost.actors.acting import begin_tools
from milepost.actors.tool_reading import ToolReaders
from milepost.actors.worker import ActorConfig
from milepost.cluster.base.exits import ConfigError, DependencyLost, Exit
from milepost.cluster.base.failure_streak import patience_s
from milepost.cluster.evaluation.places import EVALUATIONS
from milepost.cluster.evaluation.results import PlayedSuite, PolicyTold
from milepost.cluster.evaluation.store import keep
from milepost.cluster.evaluation.suite import Suite, refuse_trained, tasks_in, world_of
from milepost.cluster.preflight import check_world, judge_model
from milepost.cluster.runlog.environments import said_of
from milepost.cluster.runlog.records import EvalRecord
from milepost.cluster.runlog.runs import RunFolder
from milepost.cluster.runlog.saved_policy import digest, pinned_policy, version_of
from milepost.cluster.settings.config import RunConfig, load
from milepost.cluster.settings.environments import with_path
from milepost.cluster.system import System
from milepost.envs.scenarios import ScenarioSet
from milepost.envs.types import Failure, Split, Task, Trajectory
from milepost.learner.batch.pack import collate
from milepost.learner.batch.sample import samples
from milepost.learner.first_policy.config import ResponseLimits
from milepost.learner.first_policy.measure import ToolUse
from milepost.learner.first_policy.model import resolve
from milepost.learner.zero.policy import batch_logprobs, load_policy
from milepost.reward.evaluators.signals import Prices
from milepost.reward.evaluators.summary import Summary, summarize

T = TypeVar("T")
_FAILED_SHARE = 0.2
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 10.0
_PARITY_EPISODES = 8


def tasks_of(scenarios: ScenarioSet, split: Split, episodes: int) -> list[Task]:
    """`episodes` tasks of each environment that has a split, its scenarios as often as each other (up to one).

    Raises ConfigError if the split is empty.
    """
    found = [tasks for env in scenarios.envs if (tasks := env.tasks(split))]
    if not found:
        raise ConfigError(f"split {split} is empty: set env.{split}_size")
    return [tasks[i % len(tasks)] for tasks in found for i in range(episodes)]


async def evaluate(system: System, split: Split, episodes: int) -> Summary:
    """Play `episodes` of each environment and summarise; raises what `play` raises."""
    tasks = list(enumerate(tasks_of(system.scenarios, split, episodes)))
    played, failed = await play(system, tasks, episodes)
    return msgspec.structs.replace(summarize(played), failed=failed)


async def play(system: System, tasks: list[tuple[int, Task]], episodes: int) -> tuple[list[Trajectory], dict[str, str]]:
    """Play numbered tasks, `episodes` of each environment; and why which environments are left out.

    One of which a fifth of the episodes goes on failing is left out. Raises ConfigError if that leaves none and they
    fail in the environment or the reward, DependencyLost if they fail elsewhere, in the engine that serves all, or no
    worker is left, WatchdogExpired at the deadline.
    """
    envs = {task.env_name for _, task in tasks}
    played: list[Trajectory] = []
    began, pause_s = math.inf, _FIRST_PAUSE_S
    while True:
        results = await system.workers.play(tasks, system.config.run.stall_timeout_s)
        played += [result for result in results if isinstance(result, Trajectory)]
        failed = [result for result in results if isinstance(result, Failure)]
        counts = Counter(failure.task.env_name for failure in failed)
        failed = [failure for failure in failed if counts[failure.task.env_name] > _FAILED_SHARE * episodes]
        failing = {failure.task.env_name for failure in failed}
        if not failing:
            return played, {}
        began = min(began, time.monotonic())
        was_good = any(trajectory.task.env_name in failing for trajectory in played)
        if time.monotonic() - began >= patience_s(system.config.actors.give_up_after_s, was_good=was_good):
            if failing == envs or any(failure.boundary == "engine" for failure in failed):
                raise _too_many_failed(failed, episodes * len(envs))
            causes = {name: str(_too_many_failed(_of(failed, name), episodes)) for name in sorted(failing)}
            return [trajectory for trajectory in played if trajectory.task.env_name not in failing], causes
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        tasks = [(failure.index, failure.task) for failure in failed]


def _of(failures: list[Failure], env_name: str) -> list[Failure]:
    return [failure for failure in failures if failure.task.env_name == env_name]


def _too_many_failed(failed: list[Failure], episodes: int) -> Exit:
    first = failed[0]
    cause = f"{len(failed)} of {episodes} evaluation episodes failed; the first in {said_of(first)}"
    return ConfigError(cause) if first.boundary in ("env", "reward") else DependencyLost(cause)


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
        invalid_share=summary.invalid_share,
        cut_share=summary.cut_share,
        context_full_share=summary.context_full_share,
        turns_p50=summary.turns_p50,
        turns_p99=summary.turns_p99,
        sampled_tokens_mean=summary.sampled_tokens_mean,
        prompt_tokens_mean=summary.prompt_tokens_mean,
        cohorts=summary.cohorts,
        envs=summary.envs,
        failed=summary.failed,
    )


def evaluate_run(folder: RunFolder, *, split: Split, episodes: int) -> dict[str, Any]:
    """Evaluate a run's newest policy, also while the run goes on; what `milepost eval --json` prints."""
    with pinned_policy(folder) as (policy, version):
        found = _played(load(folder.resolved), policy, version, split=split, episodes=episodes)
    return {"run": folder.run_id} | found


def evaluate_model(config: RunConfig, model: Path, *, split: Split, episodes: int) -> dict[str, Any]:
    """Evaluate a model folder of anybody's on the environment of `config`, as a run would begin with it; the same.

    `run` is the folder, `policy_version` 0 unless it is a run's. Raises ConfigError for a folder that cannot serve.
    """
    judge_model(config, model, trained=False)
    version = version_of(model)
    return {"run": str(model)} | _played(config, model, version, split=split, episodes=episodes)


def _played(config: RunConfig, policy: Path, version: int, *, split: Split, episodes: int) -> dict[str, Any]:
    """Start an engine on `policy` and play; what there is to tell besides where the policy comes from."""
    started = time.monotonic()
    summary = _on_engine(config, policy, version, check_world(config), lambda system: evaluate(system, split, episodes))
    return {
        "split": split,
        "success": summary.success_rate,
        "success_ci": [summary.success_low, summary.success_high],
        "episodes": summary.episodes,
        "policy_version": version,
        "mean_reward": summary.mean_reward,
        "mean_turns": summary.mean_turns,
        "invalid_share": summary.invalid_share,
        "cut_share": summary.cut_share,
        "context_full_share": summary.context_full_share,
        "cohorts": msgspec.to_builtins(summary.cohorts),
        "envs": msgspec.to_builtins(summary.envs),
        "failed": summary.failed,
        "seconds": time.monotonic() - started,
    }


def _on_engine(
    config: RunConfig, policy: Path, version: int, scenarios: ScenarioSet, work: Callable[[System], Awaitable[T]]
) -> T:
    """What `work` gives on a system of `policy` that was started for it."""

    async def go(scratch: RunFolder) -> T:
        system = System(config, scratch, scenarios)
        try:
            await system.start(policy, version, learner=None, phase=lambda _: None)
            return await work(system)
        finally:
            await system.stop()

    # A place of its own: the run may be going on, and its buffer is none of an evaluation's business.
    with tempfile.TemporaryDirectory(prefix="milepost-eval-") as place:
        return asyncio.run(go(RunFolder(Path(place))))


def suite_of_run(folder: RunFolder, suite: Suite, *, episodes: int, prices: Prices | None) -> Path:
    """Play `episodes` of each scenario with a run's newest policy; the file of the results, in the run's folder.

    Raises ConfigError where the run trained on a scenario, and for what the user can mend.
    """
    with pinned_policy(folder) as (policy, version):
        found = _suite_played(load(folder.resolved), (policy, version, folder.run_id), suite, episodes)
        return keep(suite, found, prices, parent=folder.path / EVALUATIONS, policy=policy)


def suite_of_model(
    config: RunConfig, model: Path, suite: Suite, *, episodes: int, prices: Prices | None, runs_dir: Path
) -> Path:
    """The same with a model folder of anybody's, as a run of `config` would begin with it; below `runs_dir`."""
    judge_model(config, model, trained=False)
    version = version_of(model)
    found = _suite_played(config, (model, version, str(model)), suite, episodes)
    return keep(suite, found, prices, parent=runs_dir / EVALUATIONS, policy=model)


def _suite_played(config: RunConfig, policy: tuple[Path, int, str], suite: Suite, episodes: int) -> PlayedSuite:
    """`policy` is its folder, its version, and what it is called."""
    folder, version, source = policy
    refuse_trained(suite, check_world(config).tasks("train"), source)
    world, tasks, started = world_of(suite, config), list(enumerate(tasks_in(suite, episodes))), time.monotonic()
    played, failed = _on_engine(
        world, folder, version, check_world(world), lambda system: play(system, tasks, episodes)
    )
    told = PolicyTold(
        source=source,
        version=version,
        sha256=digest(folder),
        temperature=config.sampling.temperature,
        max_tokens=config.sampling.max_tokens,
        max_turns=config.actors.max_turns,
    )
    return PlayedSuite(policy=told, trajectories=played, failed=failed, seconds=time.monotonic() - started)


def first_policy(config: RunConfig, progress: Callable[[str], None]) -> Path:
    """The folder of the policy that a new run begins with, made where it is not there. Raises ConfigError."""
    limits = ResponseLimits(
        max_tokens=config.sampling.max_tokens,
        max_turns=config.actors.max_turns,
        temperature=config.sampling.temperature,
    )
    try:
        imitated, cache = with_path(config.env, config.model.warmup.env), Path(config.run.runs_dir) / "models"
        return resolve(config.model, imitated, cache, limits, progress, _tool_use(config.actors))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _tool_use(actors: ActorConfig) -> ToolUse:
    """How the policy that is made uses tools: as in the run's workers."""
    names = {"tool_parser": actors.tool_parser, "reasoning_parser": actors.reasoning_parser}
    return lambda tokenizer, dialogue: partial(begin_tools, ToolReaders(tokenizer, dialogue, **names))


def parity_sample(config: RunConfig) -> float:
    """Mean |log-prob of the learner's model - of the engine|, in nats per token, over a few episodes of the first
    policy.
    """
    model_folder = first_policy(config, print)

    async def some(system: System) -> list[Trajectory]:
        tasks = list(enumerate(tasks_of(system.scenarios, "train", _PARITY_EPISODES)))
        results = await system.workers.play(tasks, config.run.stall_timeout_s)
        return [result for result in results if isinstance(result, Trajectory)]

    played = _on_engine(config, model_folder, 0, check_world(config), some)
    model = load_policy(model_folder).eval()
    gaps = []
    with torch.no_grad():
        for sample in (sample for t in played for sample in samples(t, [0.0] * len(t.turns))):
            batch = collate([sample])
            logprobs, _ = batch_logprobs(model, batch, config.sampling.temperature)
            gaps.append((logprobs - batch.rollout_logprobs)[batch.loss_mask].abs())
    return float(torch.cat(gaps).mean())
