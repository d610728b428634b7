"""How good a policy is: episodes on a split, played through the inference engine, outside the ledger.

The policy samples as it does in training, at `sampling.temperature`. Failed episodes are not failures of the policy:
where they are many they are played again, and only if they go on failing they are an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from milepost.actors.acting import begin_tools
from milepost.actors.tool_reading import ToolReaders
from milepost.actors.worker import ActorConfig
from milepost.cluster.base.exits import ConfigError, DependencyLost, Exit
from milepost.cluster.base.failure_streak import patience_s
from milepost.cluster.preflight import check_world, judge_model
from milepost.cluster.runlog.environments import said_of
from milepost.cluster.runlog.records import EvalRecord
from milepost.cluster.runlog.runs import RunFolder
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
from milepost.reward.evaluators import Summary, summarize

_FAILED_SHARE = 0.2
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 10.0
_PARITY_EPISODES = 8
_POLICY_RECORD = "milepost.json"
_PIN_TRIES = 10
_PIN_PAUSE_S = 0.1


def tasks_of(scenarios: ScenarioSet, split: Split, episodes: int) -> list[Task]:
    """`episodes` tasks of each environment that has a split, its scenarios as often as each other (up to one).

    Raises ConfigError if the split is empty.
    """
    found = [tasks for env in scenarios.envs if (tasks := env.tasks(split))]
    if not found:
        raise ConfigError(f"split {split} is empty: set env.{split}_size")
    return [tasks[i % len(tasks)] for tasks in found for i in range(episodes)]


async def evaluate(system: System, split: Split, episodes: int) -> Summary:
    """Play `episodes` of each environment and summarise.

    An environment of which a fifth of the episodes goes on failing is left out, with the reason in `failed`. Raises
    ConfigError if that leaves none and they fail in the environment or the reward, DependencyLost if they fail
    elsewhere, in the engine that serves all, or no worker is left, WatchdogExpired at the deadline.
    """
    tasks = list(enumerate(tasks_of(system.scenarios, split, episodes)))
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
            return summarize(played)
        began = min(began, time.monotonic())
        was_good = any(trajectory.task.env_name in failing for trajectory in played)
        if time.monotonic() - began >= patience_s(system.config.actors.give_up_after_s, was_good=was_good):
            if failing == envs or any(failure.boundary == "engine" for failure in failed):
                raise _too_many_failed(failed, episodes * len(envs))
            causes = {name: str(_too_many_failed(_of(failed, name), episodes)) for name in sorted(failing)}
            rest = [trajectory for trajectory in played if trajectory.task.env_name not in failing]
            return msgspec.structs.replace(summarize(rest), failed=causes)
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
        cohorts=summary.cohorts,
        envs=summary.envs,
        failed=summary.failed,
    )


def policy_version(policy: Path) -> int:
    """The version that a saved policy folder says it is. Raises ConfigError."""
    try:
        return int(json.loads((policy / _POLICY_RECORD).read_text())["policy_version"])
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{policy} holds no policy of ours ({error}); train the run first") from error


@contextlib.contextmanager
def pinned_policy(folder: RunFolder) -> Iterator[tuple[Path, int]]:
    """A run's policy and its version, as links that stay when a going run's next checkpoint replaces `policy/`.

    Raises ConfigError if there is no policy.
    """
    place = folder.path / f".eval-{os.getpid()}.tmp"
    try:
        yield place, _pin(folder.policy, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _pin(policy: Path, place: Path) -> int:
    """Link `policy` to `place`, once more where it was replaced meanwhile; its version."""
    for tries_left in reversed(range(_PIN_TRIES)):
        shutil.rmtree(place, ignore_errors=True)
        try:
            version = policy_version(policy)
            shutil.copytree(policy, place, copy_function=os.link)
            if policy_version(policy) == version:
                return version
        except (ConfigError, OSError):
            if not tries_left:
                raise
        time.sleep(_PIN_PAUSE_S)
    raise ConfigError(f"{policy} was replaced {_PIN_TRIES} times while it was read; try again")


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
    version = policy_version(model) if (model / _POLICY_RECORD).exists() else 0
    return {"run": str(model)} | _played(config, model, version, split=split, episodes=episodes)


def _played(config: RunConfig, policy: Path, version: int, *, split: Split, episodes: int) -> dict[str, Any]:
    """Start an engine on `policy` and play; what there is to tell besides where the policy comes from."""
    scenarios = check_world(config)

    async def go(scratch: RunFolder) -> Summary:
        system = System(config, scratch, scenarios)
        try:
            await system.start(policy, version, learner=None, phase=lambda _: None)
            return await evaluate(system, split, episodes)
        finally:
            await system.stop()

    started = time.monotonic()
    # A place of its own: the run may be going on, and its buffer is none of an evaluation's business.
    with tempfile.TemporaryDirectory(prefix="milepost-eval-") as place:
        summary = asyncio.run(go(RunFolder(Path(place))))
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


def sentence(result: dict[str, Any]) -> str:
    """What `milepost eval` prints for people: a line, and one for each named environment and of several cohorts."""
    low, high = result["success_ci"]
    lines = [
        f"{result['run']}, policy version {result['policy_version']}, split {result['split']}: success "
        f"{result['success']:.1%} [{low:.1%}, {high:.1%}] in {result['episodes']} episodes"
    ]
    for kind, table in (("environment", result["envs"]), ("cohort", result["cohorts"])):
        if len(table) > 1 or kind == "environment":
            lines += [
                f"  {kind} {name}: success {found['success']:.1%} [{found['success_low']:.1%}, "
                f"{found['success_high']:.1%}] in {found['episodes']} episodes"
                for name, found in table.items()
            ]
    lines += [f"  environment {name} is left out: {cause}" for name, cause in result["failed"].items()]
    return "\n".join(lines)


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
    scenarios = check_world(config)

    async def go(scratch: RunFolder) -> list[Trajectory]:
        system = System(config, scratch, scenarios)
        try:
            await system.start(model_folder, 0, learner=None, phase=lambda _: None)
            tasks = list(enumerate(tasks_of(system.scenarios, "train", _PARITY_EPISODES)))
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
