"""What can be known before anything starts: the environment, the scenarios, the reward, the policy's chat template.

One reset and one step are really played, under the run's deadlines, so that a broken environment costs seconds and one
line instead of a started cluster. Not promised: that an environment which passes never fails later; then episodes do.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from milepost.cluster.base.exits import ConfigError, DependencyLost
from milepost.cluster.replay.client import BufferRefused, BufferUnavailable, check_url
from milepost.cluster.runlog.metrics import require_port
from milepost.cluster.settings.config import RunConfig
from milepost.envs.contract import ContractError, EnvPathError, build_env, observe_reset, observe_step
from milepost.envs.dialogue import Dialogue, ObservationError, TemplateError
from milepost.envs.scenarios import ScenarioError, ScenarioSet
from milepost.envs.types import Task, Trajectory, Turn, VersionSpan
from milepost.learner.credit.modulators import needs
from milepost.learner.credit.strategies.registry import build
from milepost.learner.first_policy.model_check import CheckedModel, ModelError, check_model, load_tokenizer
from milepost.reward.reward import RewardError, apply, load_reward

T = TypeVar("T")
_SHARED_MEMORY = Path("/dev/shm")


def check_start(config: RunConfig) -> None:
    """What would stop a new run, found before it has a folder: environment, model folder, metrics port, Redis.

    Raises ConfigError, or DependencyLost for a Redis that does not answer.
    """
    scenarios = check_world(config)
    require_port(config.metrics)
    positions = config.model.warmup.max_positions
    if config.model.source == "warmup" and config.engine.max_model_len > positions:
        raise ConfigError(
            f"engine.max_model_len = {config.engine.max_model_len} is more than model.warmup.max_positions = "
            f"{positions}: lower the one or raise the other"
        )
    try:
        if config.model.source == "folder":
            folder = Path(config.model.path).expanduser()
            judge_model(config, folder, trained=True)
            check_dialogue(config, folder, scenarios)
        if config.buffer.url_env:
            asyncio.run(check_url(config.buffer.url))
    except BufferRefused as error:
        raise ConfigError(str(error)) from error
    except BufferUnavailable as error:
        raise DependencyLost(str(error)) from error


def judge_model(config: RunConfig, folder: Path, *, trained: bool) -> CheckedModel:
    """A model folder against itself and the engine's context, and, to be `trained`, against the room in shared memory.

    Raises ConfigError.
    """
    try:
        found = check_model(
            folder, context_tokens=config.engine.max_model_len, system_prompt=config.actors.system_prompt
        )
    except (ModelError, TemplateError) as error:
        raise ConfigError(str(error)) from error
    wide = 2 if config.learner.dtype == "bfloat16" else 4
    needed, free = 2 * wide * found.parameters, shutil.disk_usage(_SHARED_MEMORY).free
    if trained and config.engine.transfer == "file" and needed > free:
        raise ConfigError(
            f"model: weights on their way to the engines need {needed / 2**30:.1f} GiB of {_SHARED_MEMORY} (an old and "
            f"a new version of {found.parameters / 1e6:.0f} M parameters), {free / 2**30:.1f} GiB are free: give the "
            "container more (docker run --shm-size), or take a smaller model"
        )
    return found


def check_world(config: RunConfig) -> ScenarioSet:
    """Load the scenarios, play one turn, score it. Raises ConfigError with the one line that says what is wrong."""
    limit = config.actors.env_timeout_s
    try:
        scenarios = within(limit, "the environment's scenarios", lambda: ScenarioSet(config.env))
        task = scenarios.task("train", 0)
        turn = within(limit, f"environment {task.env}", lambda: _play_one_turn(task))
        _require_progress(config, turn)
        if config.reward.path:
            reward = load_reward(config.reward.path)
            trial = Trajectory(
                task=task, group_id="preflight", index=0, turns=[turn], outcome="truncated", cohort=task.cohort
            )
            within(limit, f"reward {config.reward.path}", lambda: apply(reward, trial))
    except (EnvPathError, ContractError, ScenarioError, RewardError) as error:
        if isinstance(error, ContractError):
            advice = f"mend the environment; milepost check-env {config.env.path} plays it without a run"
            raise ConfigError(f"{config.env.path}: {error}; {advice}") from error
        raise ConfigError(str(error)) from error
    return scenarios


def _require_progress(config: RunConfig, turn: Turn) -> None:
    """Raises ConfigError where the strategy reads a progress that the environment does not report."""
    if "progress" in needs(build(config.credit), config.credit.modulators) and turn.progress is None:
        raise ConfigError(
            f"credit.strategy = {config.credit.strategy!r} reads info['progress'] of every step, which "
            f'{config.env.path} does not report: report it, or set credit.potential = "graph"'
        )


def check_dialogue(config: RunConfig, model: Path, scenarios: ScenarioSet) -> Dialogue:
    """The token layout of conversations with this policy. Raises ConfigError if its chat template cannot serve."""
    task = scenarios.task("train", 0)
    try:
        dialogue = Dialogue(load_tokenizer(model), config.actors.system_prompt)
        env = build_env(task.env, task.options)
        room = config.engine.max_model_len - config.sampling.max_tokens
        needed = len(dialogue.opening(observe_reset(env.reset(seed=task.seed)).observation))
    except (ModelError, TemplateError, ObservationError) as error:
        raise ConfigError(str(error)) from error
    if needed > room:
        raise ConfigError(
            f"the first prompt has {needed} tokens, engine.max_model_len leaves room for {room}: raise it"
        )
    return dialogue


def _play_one_turn(task: Task) -> Turn:
    env = build_env(task.env, task.options)
    for method, call in (("reset", partial(env.reset, seed=task.seed)), ("step", partial(env.step, ""))):
        try:
            returned = call()
        except Exception as error:  # a user's environment may raise anything
            raise ContractError(f"{method} raised {type(error).__name__}: {error}") from error
        if method == "reset":
            start = observe_reset(returned)
    step = observe_step(returned, "")
    return Turn(
        prompt_ids=[0],
        response_ids=[0],
        logprobs=[0.0],
        versions=[VersionSpan(version=0, start=0, end=1)],
        anchor=start.anchor,
        next_anchor=step.anchor,
        action=step.action,
        reward=step.reward,
        progress=step.progress,
    )


def within(limit_s: float, what: str, call: Callable[[], T]) -> T:
    """Run user code on a thread that may be left behind. Raises ConfigError if it does not return in time."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.extend((True, call()))
        except BaseException as error:
            outcome.extend((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if not outcome:
        raise ConfigError(
            f"{what} did not return within actors.env_timeout_s = {limit_s:g}; it would hang every episode"
        )
    returned, value = outcome
    if not returned:
        raise value
    result: T = value
    return result
