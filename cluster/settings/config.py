"""One TOML file -> one checked, frozen `RunConfig`; and back.

Every section is a model beside its component; this file puts them together, applies `--set` overrides, and turns what
is wrong into lines that name the file, the key and the reason. It checks what can be known before anything starts. It
holds no secret: the Redis URL comes from the environment variable that `buffer.url_env` names.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from milepost.actors.agents.config import AgentConfig
from milepost.actors.engine import EngineConfig, SamplingConfig
from milepost.actors.worker import ActorConfig
from milepost.cluster.base.exits import ConfigError
from milepost.cluster.base.restarts import RestartConfig
from milepost.cluster.replay.buffer import BufferConfig
from milepost.cluster.runlog.endpoint import MetricsConfig
from milepost.cluster.settings.complaints import complaints, source
from milepost.cluster.settings.environments import Environments, with_path
from milepost.cluster.settings.keys import unset
from milepost.cluster.settings.overrides import apply, leaves
from milepost.cluster.settings.pass_through import complaints as refused
from milepost.cluster.settings.run_section import RunSection
from milepost.cluster.tracing.config import TracingConfig
from milepost.cluster.trackers.config import TrackersConfig
from milepost.cluster.trajectories.config import TrajectoriesConfig
from milepost.envs.scenarios import ScenarioConfig
from milepost.learner.config import LearnerConfig
from milepost.learner.credit.filter import FilterConfig
from milepost.learner.credit.strategies.crbc import CRBCConfig
from milepost.learner.credit.strategies.registry import CreditConfig
from milepost.learner.first_policy.config import ModelConfig
from milepost.learner.health.collapse import CollapseConfig
from milepost.learner.health.selection_bias import SelectionBiasConfig
from milepost.learner.lora import LoraConfig
from milepost.learner.loss.critic import CriticConfig
from milepost.learner.loss.effect import without_effect
from milepost.learner.loss.entropy import EntropyConfig
from milepost.learner.loss.loss import LossConfig
from milepost.learner.loss.objective import Objective, contradiction
from milepost.learner.loss.offpolicy import OffPolicyConfig

_MAX_BYTES = 1_000_000
_FREE_ON_RESUME = (
    "run.iterations",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.eval_episodes",
    "run.eval_splits",
    "run.eval_every",
    "run.resume",
    "run.runs_dir",
    "run.stop_grace_s",
    "run.stall_timeout_s",
    "run.ray_address",
    "actors.env_timeout_s",
    "actors.max_observation_chars",
    "actors.episode_timeout_s",
    "actors.give_up_after_s",
    "engine.transfer",
    "engine.start_timeout_s",
    "engine.request_timeout_s",
    "engine.update_timeout_s",
    "learner.collective_timeout_s",
    "restarts",
    "buffer",
    "metrics",
    "selection_bias",
    "trajectories",
    "tracing",
    "trackers",
)
"""Keys and sections that may change between a run and its resumption: they do not change what is learnt."""


class RewardSection(BaseModel):
    """Where the reward comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field("", description="Reward function, package.module:function; empty keeps the environment's rewards")


class RunConfig(BaseModel):
    """Everything a run needs to know, as one section per component."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: RunSection = RunSection()
    model: ModelConfig = ModelConfig()
    env: Environments = ScenarioConfig()
    agent: AgentConfig = AgentConfig()
    engine: EngineConfig = EngineConfig()
    sampling: SamplingConfig = SamplingConfig()
    actors: ActorConfig = ActorConfig()
    reward: RewardSection = RewardSection()
    credit: CreditConfig = CRBCConfig()
    filter: FilterConfig = FilterConfig()
    loss: LossConfig = LossConfig()
    offpolicy: OffPolicyConfig = OffPolicyConfig()
    entropy: EntropyConfig = EntropyConfig()
    learner: LearnerConfig = LearnerConfig()
    lora: LoraConfig = LoraConfig()
    critic: CriticConfig = CriticConfig()
    collapse: CollapseConfig = CollapseConfig()
    selection_bias: SelectionBiasConfig = SelectionBiasConfig()
    restarts: RestartConfig = RestartConfig()
    buffer: BufferConfig = BufferConfig()
    metrics: MetricsConfig = MetricsConfig()
    trajectories: TrajectoriesConfig = TrajectoriesConfig()
    tracing: TracingConfig = TracingConfig()
    trackers: TrackersConfig = TrackersConfig()

    @property
    def envs(self) -> tuple[ScenarioConfig, ...]:
        """All environments, in the order of their tables; where an agent program plays, it stands in their place."""
        return with_path(self.env, self.agent.name)

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        for is_wrong, reason in _contradictions(self):
            if is_wrong:
                raise ValueError(reason)
        return self


def _contradictions(config: RunConfig) -> Iterator[tuple[bool, str]]:
    run = config.run
    yield from _of_agent(config)
    yield from ((True, line) for line in refused(config.engine, config.learner))
    in_system = run.groups_per_iteration * (run.max_staleness + 1)
    yield (
        config.buffer.max_groups < in_system,
        f"buffer.max_groups = {config.buffer.max_groups} is less than the {in_system} groups that "
        "run.groups_per_iteration x (run.max_staleness + 1) lets wait; raise it",
    )
    yield (
        config.learner.minibatches > run.groups_per_iteration,
        f"learner.minibatches = {config.learner.minibatches} is more than run.groups_per_iteration = "
        f"{run.groups_per_iteration}; every optimizer step needs a group",
    )
    yield (
        config.sampling.max_tokens >= config.engine.max_model_len,
        f"sampling.max_tokens = {config.sampling.max_tokens} leaves no room for a prompt in engine.max_model_len = "
        f"{config.engine.max_model_len}; lower the one or raise the other",
    )
    for key, least, there in (
        ("restarts.min_engines", config.restarts.min_engines, config.engine.num_engines),
        ("restarts.min_workers", config.restarts.min_workers, config.actors.num_workers),
    ):
        yield least > there, f"{key} = {least} is more than the {there} that the run starts; lower it"
    yield (
        config.tracing.endpoint != "" and not config.trajectories.max_bytes,
        "tracing.endpoint is set and trajectories.max_bytes = 0 records no episode to trace; raise it",
    )
    complaint = contradiction(config.loss, config.offpolicy)
    yield complaint is not None, complaint or ""
    objective = Objective(loss=config.loss, offpolicy=config.offpolicy, entropy=config.entropy)
    unused = without_effect(objective, minibatches=config.learner.minibatches)
    yield unused is not None, unused or ""
    yield (
        config.lora.rank > 0 and config.engine.transfer == "nccl",
        'engine.transfer = "nccl" broadcasts whole weights, and with lora.rank adapters alone travel; leave '
        'engine.transfer out, or set "file" or "object_store"',
    )
    yield (
        run.ray_address != "" and not config.buffer.url_env,
        "run.ray_address is set but buffer.url_env is empty: an embedded Redis serves one machine only; "
        "set buffer.url_env to the environment variable that holds the URL of one that every node reaches",
    )


def _of_agent(config: RunConfig) -> Iterator[tuple[bool, str]]:
    envs, plays = with_path(config.env, ""), bool(config.agent.name)
    own = [env.path for env in envs if env.path != ScenarioConfig().path]
    yield plays and bool(own), f"agent and env.path = {own[:1]} are both set; an episode is played by one of them"
    yield (
        plays and any(env.distinct_starts for env in envs),
        "env.distinct_starts = true looks at the states that environments start in; an agent shows none: leave it out",
    )
    yield (
        plays and config.model.source == "warmup" and not config.model.warmup.env,
        'model.source = "warmup" learns from demonstrations, and an agent gives none: name an environment with its '
        'tools in model.warmup.env, or set model.source = "folder" and model.path',
    )
    yield (
        plays and config.actors.window_turns > 0,
        "actors.window_turns drops old turns of an environment's episode; an agent keeps its own history: leave it out",
    )
    yield config.agent.max_tokens > 0 and not plays, "agent.max_tokens is set, but no agent.path or agent.command"


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file, apply overrides of the form `section.key=value`, and check all of it.

    A value of an override is TOML; what is not valid TOML is taken as a string. Raises ConfigError with one line for
    each thing that is wrong: file (or `--set`), key, reason, and for an unknown key the nearest known name.
    """
    values = _read(path)
    overridden = [apply(values, override) for override in overrides]
    for key, value in leaves(values):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{source(key, overridden, path)}: {key} = {value} is not a finite number")
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(complaints(error, RunConfig, values, overridden=overridden, path=path))) from error


def dump(config: RunConfig, path: Path) -> None:
    """Write the resolved config, defaults included, so that `load` gives the same config back.

    TOML has no value for a key that is unset: it stands in its section as a comment with its description.
    """
    comments = {
        f"[{table}]": [f"# {name} = unset: {description}" for name, description in keys]
        for table, keys in unset(config, strategy=config.credit.strategy).items()
    }
    lines: list[str] = []
    for line in tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)).split("\n"):
        lines += [line, *comments.get(line, [])]
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text("\n".join(lines), encoding="utf-8")
    scratch.replace(path)


def config_hash(config: RunConfig) -> str:
    """16 hex digits over every value that shapes what is learnt; equal for a run and its allowed resumptions."""
    kept = {key: value for key, value in leaves(config.model_dump(mode="json")) if not is_free_on_resume(key)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def is_free_on_resume(key: str) -> bool:
    """Whether a resumed run may change it: it does not shape what is learnt."""
    return any(key == free or key.startswith(f"{free}.") for free in _FREE_ON_RESUME)


def refuse_change(old: RunConfig, new: RunConfig) -> None:
    """Check that `new` may continue a run that began with `old`.

    Raises ConfigError with one line for each changed value that shapes what is learnt.
    """
    before, after = (dict(leaves(config.model_dump(mode="json"))) for config in (old, new))
    changed = sorted(
        key for key in before.keys() | after.keys() if before.get(key) != after.get(key) and not is_free_on_resume(key)
    )
    if changed:
        lines = [f"{key} was {before.get(key)!r} and is now {after.get(key)!r}" for key in changed]
        raise ConfigError("\n".join([*lines, "a resumed run keeps these values; undo the change or start a new run"]))


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: larger than 1 MB; a config is a few kilobytes")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the path of a TOML config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        headers = set(re.findall(rb"^\s*(\[+env\]+)", path.read_bytes(), re.MULTILINE))
        both = headers >= {b"[env]", b"[[env]]"}
        reason = "[env] and [[env]] exclude each other: write [[env]] each time, with a name" if both else str(error)
        raise ConfigError(f"{path}: not valid TOML: {reason}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply") from error
