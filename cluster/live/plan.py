"""What `milepost play` is asked to play: an environment, an agent program, or what a config plays."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milepost.actors.agents.config import AgentConfig
from milepost.actors.engine import EngineConfig, SamplingConfig
from milepost.actors.worker import ActorConfig
from milepost.cluster.base.exits import ConfigError
from milepost.cluster.settings.overrides import apply
from milepost.envs.contract import EnvPathError, load_env_class
from milepost.envs.dotted_path import DottedPathError, resolve
from milepost.envs.types import Task

if TYPE_CHECKING:
    from milepost.cluster.settings.config import RunConfig

_MOST_TURNS = 50
"""Of an episode for which nobody has set a limit, as check-env has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """How a policy is served and what it is told."""

    actors: ActorConfig
    engine: EngineConfig
    sampling: SamplingConfig
    takes_models_context: bool = False
    """Whether the engine's context is the model's, up to 4096 tokens, as nobody said how long it should be."""

    def changed(
        self, *, system_prompt: str | None, temperature: float | None, max_tokens: int | None
    ) -> PolicySettings:
        """With what is not None instead."""
        told = {"system_prompt": system_prompt}
        sampled = {"temperature": temperature, "max_tokens": max_tokens}
        return replace(
            self,
            actors=self.actors.model_copy(update=_said(told)),
            sampling=self.sampling.model_copy(update=_said(sampled)),
        )


def unsaid() -> PolicySettings:
    """The settings where there is no config."""
    return PolicySettings(
        actors=ActorConfig(max_turns=_MOST_TURNS),
        engine=EngineConfig(),
        sampling=SamplingConfig(),
        takes_models_context=True,
    )


def settings_of(config: RunConfig) -> PolicySettings:
    """As a run of `config` has them."""
    return PolicySettings(actors=config.actors, engine=config.engine, sampling=config.sampling)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One episode to play."""

    task: Task
    agent: AgentConfig
    """Without a name where an environment is played."""
    settings: PolicySettings
    reward_path: str

    @property
    def has_expert(self) -> bool:
        """Whether the environment demonstrates how to play it."""
        return not self.agent.name and hasattr(load_env_class(self.task.env), "demonstration")


def planned(path: str, overrides: Sequence[str], seed: int) -> Plan:
    """The episode that `path` and `seed` mean. Raises ConfigError.

    `path` is `package.module:Name`, with `overrides` as options of an environment's constructor or of an agent's task,
    or a config, with overrides of it; then `seed` is the place in the order in which a run plays its tasks.
    """
    try:
        return _of_config(Path(path), overrides, seed) if path.endswith(".toml") else _of_name(path, overrides, seed)
    except (DottedPathError, EnvPathError, ValueError) as error:
        raise ConfigError(f"play: {error}") from error


def _of_name(path: str, overrides: Sequence[str], seed: int) -> Plan:
    options: dict[str, Any] = {}
    for override in overrides:
        apply(options, override)
    is_agent = asyncio.iscoroutinefunction(resolve(path))
    try:
        if not is_agent:
            load_env_class(path)
    except EnvPathError as error:
        raise ConfigError(f"play: {error}, and no agent program: that is an 'async def run(task, client)'") from error
    task = Task(env=path, seed=seed, split="train", options=options)
    return Plan(task=task, agent=AgentConfig(path=path * is_agent), settings=unsaid(), reward_path="")


def _of_config(path: Path, overrides: Sequence[str], seed: int) -> Plan:
    from milepost.cluster.settings import config as configs  # heavy front doors
    from milepost.envs.scenarios import ScenarioSet

    config = configs.load(path, overrides)
    return Plan(
        task=ScenarioSet(config.envs).schedule(seed),
        agent=config.agent,
        settings=settings_of(config),
        reward_path=config.reward.path,
    )


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
