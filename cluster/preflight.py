"""What can be known before anything starts: environment, reward, credit strategy, the policy's chat template.

A few turns are really played, by the code and under the deadlines of the run, so that a broken environment costs
seconds and one line instead of a started cluster. Not promised: that an environment which passes never fails later;
then episodes do.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from milepost.actors.agents.program import AgentPathError, check_program
from milepost.actors.checks.rehearsal import Characters, Rehearsal, rehearse
from milepost.actors.installed_vllm import is_served
from milepost.actors.resources import Limits
from milepost.actors.tool_reading import ToolReaders
from milepost.cluster.base.exits import ConfigError, DependencyLost
from milepost.cluster.evaluation.judging import require_judge
from milepost.cluster.placement.hosts import named_ray
from milepost.cluster.placement.plan import check_own_host
from milepost.cluster.replay.client import BufferRefused, BufferUnavailable
from milepost.cluster.replay.own_redis import check_url
from milepost.cluster.runlog.endpoint import require_port
from milepost.cluster.settings.config import RunConfig
from milepost.cluster.settings.credit_basis import credit_basis
from milepost.cluster.settings.environments import with_path
from milepost.cluster.settings.own_credit import check_credit
from milepost.cluster.trackers.config import require_packages
from milepost.envs.chat_template import TemplateError
from milepost.envs.contract import EnvPathError, load_env_class
from milepost.envs.dialogue import Dialogue, ObservationError
from milepost.envs.plain_values import ContractError
from milepost.envs.scenarios import EnvScenarios, ScenarioError, ScenarioSet
from milepost.envs.types import Failure
from milepost.learner.credit.modulators import needs
from milepost.learner.credit.strategies.registry import build
from milepost.learner.first_policy.demonstrations import DemonstrationError, require_demonstrator
from milepost.learner.first_policy.model_check import CheckedModel, ModelError, check_model, load_tokenizer
from milepost.learner.zero.families import remarks_on
from milepost.reward.judges.config import JudgeConfig
from milepost.reward.judges.reward import JudgeReward
from milepost.reward.reward import Reward, RewardError, load_reward

T = TypeVar("T")
_SHARED_MEMORY = Path("/dev/shm")
REWRITES = (
    "the chat template rewrites earlier turns (thoughts, mostly): where it does, a new sample begins, which costs "
    "tokens; prefix_breaks counts them. To avoid that, edit chat_template.jinja so that it keeps what was said"
)
_TURNS = 3
"""Played before a run: enough to see a reset, steps and what one leaves for the next."""


def check_start(config: RunConfig) -> None:
    """What would stop a new run, found before it has a folder: environment, model folder, port, packages, Redis.

    Raises ConfigError, or DependencyLost for a Redis that does not answer.
    """
    scenarios = check_world(config)
    if config.model.source == "warmup" and config.model.warmup.env:
        _check_demonstrations(config)
    for warning in check_credit(config.credit):
        print(f"milepost: {warning}", file=sys.stderr)
    require_port(config.metrics)
    require_packages(config.trackers)
    check_own_host(config)
    positions = config.model.warmup.max_positions
    if config.model.source == "warmup" and config.engine.max_model_len > positions:
        raise ConfigError(
            f"engine.max_model_len = {config.engine.max_model_len} is more than model.warmup.max_positions = "
            f"{positions}: lower the one or raise the other"
        )
    try:
        if config.model.source == "folder":
            folder = Path(config.model.path).expanduser()
            for remark in remarks(config, judge_model(config, folder, trained=True)):
                print(f"milepost: {folder}: {remark}", file=sys.stderr)
            check_dialogue(config, folder, scenarios)
        if config.buffer.url_env:
            asyncio.run(check_url(config.buffer.url, config.buffer))
    except BufferRefused as error:
        raise ConfigError(str(error)) from error
    except BufferUnavailable as error:
        raise DependencyLost(str(error)) from error


def basis_of_credit(config: RunConfig, scenarios: ScenarioSet) -> str | None:
    """What credit goes by, for people, in each environment where they differ.

    A later step that hangs is not judged here: episodes have their deadlines.
    """
    if config.agent.name:
        return "credit: success where the agent's result says it, else returns"
    found = {env.config.name: _basis_in(config, env) for env in scenarios.envs}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return "; ".join(f"{name}: {basis}" for name, basis in found.items() if basis is not None)


def _basis_in(config: RunConfig, env: EnvScenarios) -> str | None:
    limit, task = config.actors.env_timeout_s, env.task("train", 0)
    with contextlib.suppress(ConfigError):
        return within(2 * limit, "an episode", lambda: credit_basis(config, task, seconds=min(2.0, limit / 2)))
    return None


def judge_model(config: RunConfig, folder: Path, *, trained: bool) -> CheckedModel:
    """A model folder against itself, the engine's context and, to be `trained`, shared memory. Raises ConfigError."""
    try:
        found = check_model(
            folder, context_tokens=config.engine.max_model_len, system_prompt=config.actors.system_prompt
        )
    except (ModelError, TemplateError) as error:
        raise ConfigError(str(error)) from error
    _require_engine(folder, found)
    wide = 2 if config.learner.dtype == "bfloat16" else 4
    needed, free = 2 * wide * found.parameters, shutil.disk_usage(_SHARED_MEMORY).free
    joined = named_ray(config.run.ray_address)  # perhaps of several hosts
    is_here = config.engine.transfer == "file" or (config.engine.transfer == "auto" and not joined)
    if trained and is_here and needed > free:
        raise ConfigError(
            f"model: weights on their way to the engines need {needed / 2**30:.1f} GiB of {_SHARED_MEMORY} (an old and "
            f"a new version of {found.parameters / 1e6:.0f} M parameters), {free / 2**30:.1f} GiB are free: give the "
            "container more (docker run --shm-size), or take a smaller model"
        )
    return found


def remarks(config: RunConfig, found: CheckedModel) -> list[str]:
    """What training on a model folder costs more than need be, and why."""
    return [*([] if found.appends else [REWRITES]), *remarks_on(found.config, config.learner.packing)]


def _require_engine(folder: Path, found: CheckedModel) -> None:
    """Raises ConfigError for a model that the engine has no code for."""
    path = folder / "config.json"
    if not found.architectures:
        raise ConfigError(
            f'model: {path} lacks "architectures", by which the engine chooses its code for a {found.family}; copy it '
            "again, or save the model with save_pretrained"
        )
    if not any(map(is_served, found.architectures)):
        raise ConfigError(
            f"model: {path} names {', '.join(found.architectures)} (model type {found.family!r}), which the engine, "
            "vLLM, does not serve; docs/models.md lists the families that work"
        )


def check_world(config: RunConfig) -> ScenarioSet:
    """Try a credit strategy of the user's own, load the scenarios, play and score the beginning of one episode of each.

    Raises ConfigError with the one line that says what is wrong.
    """
    limit = config.actors.env_timeout_s
    within(limit, "the credit strategy", lambda: check_credit(config.credit))
    try:
        scenarios = within(limit, "the environment's scenarios", lambda: ScenarioSet(config.envs))
        reward = load_reward(config.reward.path) if config.reward.path else None
    except ContractError as error:
        paths = " or ".join(sorted({env.path for env in config.envs if env.distinct_starts}))
        raise ConfigError(f"{paths}: {error}; {_advice(paths)}") from error
    except (EnvPathError, ScenarioError, RewardError) as error:
        raise ConfigError(str(error)) from error
    if config.agent.name:
        within(limit, "the agent", lambda: check_program(config.agent))
        if "progress" in needs(build(config.credit), config.credit.modulators):
            raise ConfigError(f"credit.strategy = {config.credit.strategy!r} reads progress, which no agent reports")
        return scenarios
    if isinstance(reward, JudgeReward):
        _require_judge(config, reward.judge.config)
    layout = Characters()
    for env in scenarios.envs:
        rehearsal = Rehearsal(layout=layout, decode=layout.decode)
        _rehearse(config, env, rehearsal, reward=reward)
        _require_progress(config, env, rehearsal)
    return scenarios


def _require_judge(config: RunConfig, judge: JudgeConfig) -> None:
    """Raises ConfigError for a judge that is refused or has no time to answer, DependencyLost without its server."""
    if judge.longest_s > config.actors.env_timeout_s:
        raise ConfigError(
            f"judge {judge.name}: deadline_s x (retries + 1) = {judge.longest_s:g} s is more than a reward may take, "
            f"actors.env_timeout_s = {config.actors.env_timeout_s:g}: lower the one or raise the other"
        )
    require_judge(judge, Path(config.model.path).expanduser() if config.model.source == "folder" else None)


def check_dialogue(config: RunConfig, model: Path, scenarios: ScenarioSet) -> Dialogue:
    """The token layout of conversations with this policy; the beginning of an episode of each
    environment is played in it.

    Raises ConfigError if its chat template cannot serve, or not what the environment says.
    """
    try:
        tokenizer = load_tokenizer(model)
        dialogue = Dialogue(tokenizer, config.actors.system_prompt)
    except (ModelError, TemplateError, ObservationError) as error:
        raise ConfigError(str(error)) from error
    readers = ToolReaders(
        tokenizer, dialogue, tool_parser=config.actors.tool_parser, reasoning_parser=config.actors.reasoning_parser
    )

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    room = config.engine.max_model_len - config.sampling.max_tokens
    for env in () if config.agent.name else scenarios.envs:
        _rehearse(config, env, Rehearsal(layout=dialogue, decode=decode, readers=readers), max_prompt_tokens=room)
    return dialogue


def _check_demonstrations(config: RunConfig) -> None:
    """Try the environment of `model.warmup.env` as one that is played. Raises ConfigError."""
    demonstrated = with_path(config.env, config.model.warmup.env)
    try:
        scenarios = within(config.actors.env_timeout_s, "model.warmup.env", lambda: ScenarioSet(demonstrated))
        for env in scenarios.envs:
            require_demonstrator(load_env_class(env.config.path), env.config.path)
            _rehearse(config, env, Rehearsal(layout=Characters(), decode=Characters().decode))
    except (ConfigError, ContractError, DemonstrationError, EnvPathError, ScenarioError) as error:
        raise ConfigError(f"model.warmup.env: {error}") from error


def _rehearse(
    config: RunConfig,
    env: EnvScenarios,
    rehearsal: Rehearsal,
    *,
    reward: Reward | None = None,
    max_prompt_tokens: int = sys.maxsize,
) -> None:
    """Play a few turns of the first task as a worker does. Raises ConfigError where that episode fails."""
    limits = Limits(
        max_turns=min(_TURNS, config.actors.max_turns),
        env_timeout_s=config.actors.env_timeout_s,
        episode_timeout_s=config.actors.episode_timeout_s,
        max_observation_chars=config.actors.max_observation_chars,
        max_prompt_tokens=max_prompt_tokens,
        window_turns=config.actors.window_turns,
    )
    asyncio.run(rehearse(rehearsal, env.task("train", 0), limits=limits, reward=reward))
    result = rehearsal.result
    if not isinstance(result, Failure):
        return
    if rehearsal.was_not_built or result.boundary == "reward":
        raise ConfigError(rehearsal.complaint)
    raise ConfigError(f"{env.config.path}: {rehearsal.complaint}; {_advice(env.config.path)}")


def _advice(path: str) -> str:
    return f"milepost check-env {path} plays it without a run"


def _require_progress(config: RunConfig, env: EnvScenarios, rehearsal: Rehearsal) -> None:
    """Raises ConfigError where the strategy reads a progress that the environment does not report."""
    if "progress" not in needs(build(config.credit), config.credit.modulators):
        return
    if any(step.progress is None for step in rehearsal.steps):
        instead = 'set credit.potential = "graph"' if config.credit.strategy == "pbrs" else "choose another strategy"
        raise ConfigError(
            f"credit.strategy = {config.credit.strategy!r} reads info['progress'] of every step, which "
            f"{env.config.path} does not report: report it, or {instead}"
        )


def within(limit_s: float, what: str, call: Callable[[], T]) -> T:
    """Run user code on a thread that may be left behind.

    Raises ConfigError if it does not return in time or raises what no program of ours does, `sys.exit()` included.
    """
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
        raise ConfigError(f"{what} did not return within actors.env_timeout_s = {limit_s:g}; it would hang the run")
    returned, value = outcome
    if not returned:
        if isinstance(value, ConfigError | EnvPathError | ContractError | ScenarioError):
            raise value
        if isinstance(value, AgentPathError):
            raise ConfigError(str(value)) from value
        raise ConfigError(f"{what} raised {type(value).__name__}: {' '.join(str(value).split())[:300]}") from value
    result: T = value
    return result
