"""A suite: a file of fixed scenarios by which policies are judged and compared. It plays nothing.

TOML with the suite's own keys and a table [[scenario]] each, or JSONL with these keys in the first line and a scenario
in every other one. The hash of the scenarios is the suite's identity: results of one hash compare, whatever the file is
called and in whatever order it stands.
"""

from __future__ import annotations

import datetime
import hashlib
import inspect
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.settings.config import RunConfig
from milepost.envs.contract import EnvPathError, load_env_class
from milepost.envs.scenarios import ScenarioConfig
from milepost.envs.types import COHORT_RULE, OptionValue, Task, check_options, is_cohort
from milepost.reward.evaluators.episode import Expected

T = TypeVar("T", bound=BaseModel)
_MAX_BYTES = 16_000_000
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Scenario(BaseModel):
    """One task that is always played alike, and what a good episode of it is like."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Name
    env: str = Field(min_length=1)
    """As `env.path` of a run; where an agent program plays, that program's name."""
    options: dict[str, OptionValue] = {}
    seed: int = Field(ge=0, lt=2**63)
    cohort: str = ""
    ideal_steps: int | None = Field(None, ge=1)
    expected_tools: list[str] = []
    forbidden_tools: list[str] = []
    expected_result: str | None = None
    criteria: list[str] = []

    @field_validator("options")
    @classmethod
    def _travel(cls, options: dict[str, OptionValue]) -> dict[str, OptionValue]:
        check_options(options)
        return options

    @field_validator("cohort")
    @classmethod
    def _is_cohort(cls, cohort: str) -> str:
        if not is_cohort(cohort):
            raise ValueError(COHORT_RULE)
        return cohort

    @property
    def task(self) -> Task:
        """What a worker plays; its episodes are told apart by the scenario's name."""
        return Task(env=self.env, seed=self.seed, split="heldout", options=self.options, env_name=self.name)

    @property
    def expected(self) -> Expected:
        """What evaluators compare an episode with."""
        return Expected(
            ideal_steps=self.ideal_steps,
            tools=tuple(self.expected_tools),
            forbidden=tuple(self.forbidden_tools),
            result=self.expected_result,
            criteria=tuple(self.criteria),
        )


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    created: datetime.date
    sha256: str = Field("", pattern="^([0-9a-f]{64})?$")


class Suite(BaseModel):
    """A whole file, with its scenarios in the order of their names."""

    model_config = ConfigDict(frozen=True)

    name: str
    created: datetime.date
    sha256: str
    """Of the scenarios alone: 64 hex digits."""
    scenarios: tuple[Scenario, ...]


def load(path: Path, *, today: datetime.date) -> Suite:
    """The suite of a file. Raises ConfigError with a line for each thing that is wrong: file, scenario, key, reason."""
    header, tables = _tables(path)
    suite = _checked(_Header, header, str(path))
    scenarios = _scenarios(tables, path)
    names = [scenario.name for scenario in scenarios]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError("\n".join(f"{path}: scenario {name}: name: two scenarios have it" for name in twice))
    if not scenarios:
        raise ConfigError(f"{path}: scenario: there is none; a suite needs at least one")
    if suite.created > today:
        raise ConfigError(f"{path}: created: {suite.created} is in the future; give the day on which it was written")
    found = content_hash(scenarios)
    if suite.sha256 and suite.sha256 != found:
        raise ConfigError(
            f"{path}: sha256: the scenarios hash to {found}, the file says {suite.sha256}: they were changed; undo "
            "that, or give the suite another name and this hash, since results of the two do not compare"
        )
    ordered = tuple(sorted(scenarios, key=lambda scenario: scenario.name))
    return Suite(name=suite.name, created=suite.created, sha256=found, scenarios=ordered)


def content_hash(scenarios: Iterable[Scenario]) -> str:
    """SHA-256 over the scenarios as canonical JSON, in the order of their names; what is not said is not hashed."""
    told = sorted((s.model_dump(mode="json", exclude_defaults=True) for s in scenarios), key=lambda each: each["name"])
    return hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def trained_on(suite: Suite, tasks: Iterable[Task]) -> list[str]:
    """Names of the scenarios that are among `tasks`: same environment, seed and options, its constructor's defaults and
    the cohort aside.
    """
    defaults = {scenario.env: _defaults(scenario.env) for scenario in suite.scenarios}
    known = {_identity(task.env, task.seed, task.options, defaults[task.env]) for task in tasks if task.env in defaults}
    return [s.name for s in suite.scenarios if _identity(s.env, s.seed, s.options, defaults[s.env]) in known]


def refuse_trained(suite: Suite, tasks: Iterable[Task], source: str) -> None:
    """Raises ConfigError with the names of the scenarios that are among the training `tasks` of `source`."""
    if names := trained_on(suite, tasks):
        raise ConfigError(
            f"suite {suite.name}: {source} trains on {len(names)} of its scenarios: {', '.join(names)}; a policy is "
            "not judged by what it was trained on: give them other seeds, or take them out"
        )


def tasks_in(suite: Suite, episodes: int) -> list[Task]:
    """`episodes` times all scenarios in their order: episode n is of scenario n % S, and number n // S of it.

    So an episode's luck goes by scenario and number, whatever the number of episodes.
    """
    return [scenario.task for _ in range(episodes) for scenario in suite.scenarios]


def world_of(suite: Suite, config: RunConfig) -> RunConfig:
    """The configuration with the environments of the suite in place of its own, one task of each to be tried out.

    Raises ConfigError where an agent program is to play an environment.
    """
    first = {scenario.env: scenario for scenario in reversed(suite.scenarios)}
    if config.agent.name and (others := sorted(first.keys() - {config.agent.name})):
        raise ConfigError(
            f"suite {suite.name}: env is {others[0]}, and the agent program {config.agent.name} plays: name it in env"
        )
    envs = tuple(
        ScenarioConfig(name=f"suite-{k}", path=env, options=scenario.options, train_size=1, heldout_size=0)
        for k, (env, scenario) in enumerate(sorted(first.items()))
    )
    return config.model_copy(update={"env": envs})


def age_days(suite: Suite, today: datetime.date) -> int:
    """Days since it was written."""
    return (today - suite.created).days


def _identity(
    env: str, seed: int, options: Mapping[str, object], defaults: Mapping[str, object]
) -> tuple[str, int, str]:
    told = {name: value for name, value in options.items() if name != "cohort" and defaults.get(name) != value}
    return env, seed, json.dumps(told, sort_keys=True)


def _defaults(env: str) -> dict[str, object]:
    """What the constructor takes where an option is not given; nothing is known of an agent program's."""
    try:
        parameters = inspect.signature(load_env_class(env)).parameters.values()
    except (EnvPathError, TypeError, ValueError):
        return {}
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _tables(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """The suite's own keys, and the scenarios as they stand. Raises ConfigError."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: larger than 16 MB; split the suite")
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".jsonl":
            whole = tomllib.loads(text)
            tables = whole.pop("scenario", [])
            return whole, tables if isinstance(tables, list) else [tables]
        header, *rows = list(_lines(path, text)) or [{}]
        return header, rows
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the path of a suite, TOML or JSONL") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid UTF-8: {error}; write the file as text") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}; a file of JSON lines ends in .jsonl") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply") from error


def _lines(path: Path, text: str) -> Iterator[Any]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(f"{path}: line {number}: not valid JSON: {error}") from error


def _scenarios(tables: list[Any], path: Path) -> list[Scenario]:
    """Raises ConfigError with what is wrong in any of them."""
    scenarios, wrong = [], []
    for number, table in enumerate(tables, start=1):
        try:
            scenarios.append(_checked(Scenario, table, f"{path}: {_called(table, number)}"))
        except ConfigError as error:
            wrong.append(str(error))
    if wrong:
        raise ConfigError("\n".join(wrong))
    return scenarios


def _called(table: Any, number: int) -> str:
    name = table.get("name") if isinstance(table, dict) else None
    return f"scenario {name}" if isinstance(name, str) and name else f"scenario number {number}"


def _checked(model: type[T], table: Any, where: str) -> T:
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise ConfigError("\n".join(_complaints(error, where))) from error


def _complaints(error: ValidationError, where: str) -> Iterator[str]:
    told: set[str] = set()
    for detail in error.errors(include_url=False):
        key = ".".join(str(part) for part in detail["loc"][:2])
        reason = "unknown key" if detail["type"] == "extra_forbidden" else detail["msg"].removeprefix("Value error, ")
        if key not in told:  # a value of several types is told of once for each
            told.add(key)
            yield f"{where}: {key}: {reason}" if key else f"{where}: {reason}"
