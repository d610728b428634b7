"""What an experiment is: one TOML file -> every (config, arm, seed) as a checked configuration of a run.

A config is a training configuration with overrides, an arm is what is compared (a credit strategy, a filter), and a
seed repeats it. All cells are resolved before the first one starts, so a wrong key costs a line and not an hour. Arms
are compared at equal episodes: a config whose arms differ in iterations, groups or group size is refused. Not promised:
equal time per arm, or that the cells differ in nothing but what their names say.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.settings import config as configs
from milepost.cluster.settings.config import RunConfig
from milepost.cluster.settings.own_credit import check_credit
from milepost.envs.types import Split

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=24)]
_OWNED = ("run.name", "run.seed", "run.runs_dir")
"""Keys that the experiment sets in every cell."""


class BaseRun(BaseModel):
    """A training configuration that every arm is tried on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(description="Name in the table")
    path: Path = Field(description="TOML configuration, as `milepost train` takes it")
    overrides: list[str] = Field([], description='Overrides: what is changed in it, e.g. "run.iterations=12"')


class Arm(BaseModel):
    """One of the things that are compared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(description="Name in the table")
    overrides: list[str] = Field([], description='Overrides: what makes the arm, e.g. "credit.strategy=starpo"')


class Measures(BaseModel):
    """What is read off every cell."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    splits: list[Split] = Field(
        ["heldout"], min_length=1, description="Evaluation splits: those whose final evaluation is compared"
    )
    reach: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Success rate threshold in training, whose sample efficiency (episodes to reach it) is compared",
    )
    window: int = Field(3, ge=1, description="Running mean window in iterations, of the mean that has to reach it")


class Experiment(BaseModel):
    """An experiment's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(description="Name: last part of the experiment's id")
    seeds: list[int] = Field(
        [0, 1, 2], min_length=1, description="Random seeds: values of run.seed; more of them, less chance"
    )
    cell_timeout_s: float = Field(3600, gt=0, description="Cell timeout in seconds, from start to end of one run")
    measures: Measures = Measures()
    configs: list[BaseRun] = Field(min_length=1, description="Configurations: what is trained")
    arms: list[Arm] = Field(min_length=1, description="Arms: what is compared")

    @model_validator(mode="after")
    def _names_are_names(self) -> Self:
        for what, names in (
            ("configs", [config.name for config in self.configs]),
            ("arms", [arm.name for arm in self.arms]),
            ("seeds", [str(seed) for seed in self.seeds]),
            ("cells", [cell_name(*key) for key in _keys(self)]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what}: {', '.join(twice)} stands there twice")
        return self


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of an experiment."""

    config: str
    arm: str
    seed: int
    run: RunConfig

    @property
    def name(self) -> str:
        """Name of the run and of its files."""
        return cell_name(self.config, self.arm, self.seed)

    @property
    def episodes(self) -> int:
        """Episodes it trains on where none fails."""
        return self.run.run.iterations * self.run.run.groups_per_iteration * self.run.run.group_size


def cell_name(config: str, arm: str, seed: int) -> str:
    """`frozenlake-gigpo-0`."""
    return f"{config}-{arm}-{seed}"


def load(path: Path) -> Experiment:
    """Read an experiment's file. Raises ConfigError with one line for each thing that is wrong."""
    try:
        return Experiment.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the path of an experiment's TOML") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        lines = [_complaint(path, list(detail["loc"]), detail["msg"]) for detail in error.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from error


def plan(experiment: Experiment, folder: Path) -> list[Cell]:
    """Every cell in the order in which they run, their run folders inside `folder`; all arms of a seed come together.

    Raises ConfigError for a cell that cannot be resolved or measured, or whose arms have unequal budgets.
    """
    bases = {config.name: config for config in experiment.configs}
    arms = {arm.name: arm for arm in experiment.arms}
    cells = []
    for key in _keys(experiment):
        base, arm = bases[key[0]], arms[key[1]]
        chosen = [*base.overrides, *arm.overrides]
        _refuse_owned(cell_name(*key), chosen)
        own = (cell_name(*key), key[2], str(folder))
        settings = [f"{name}={json.dumps(value)}" for name, value in zip(_OWNED, own, strict=True)]
        try:
            cells.append(Cell(*key, configs.load(base.path, [*chosen, *settings])))
            check_credit(cells[-1].run.credit)
        except ConfigError as error:
            raise ConfigError(
                "\n".join(f"cell {cell_name(*key)}: {line}" for line in str(error).splitlines())
            ) from error
    for cell in cells:
        _refuse_unmeasurable(cell, experiment.measures)
    _refuse_unequal(cells)
    return cells


def _keys(experiment: Experiment) -> Iterator[tuple[str, str, int]]:
    for seed in experiment.seeds:
        for config in experiment.configs:
            for arm in experiment.arms:
                yield config.name, arm.name, seed


def _refuse_owned(cell: str, overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in _OWNED:
            raise ConfigError(f"cell {cell}: {key} is set by the experiment; remove it from overrides")


def _refuse_unmeasurable(cell: Cell, measures: Measures) -> None:
    if cell.run.run.eval_episodes == 0:
        raise ConfigError(f"cell {cell.name}: run.eval_episodes = 0 leaves no final success to compare; set it")
    envs = cell.run.envs
    sizes: dict[Split, int] = {
        "train": max(env.train_size for env in envs),
        "heldout": max(env.heldout_size for env in envs),
        "ood": max(env.ood_size for env in envs),
    }
    for split in measures.splits:
        if sizes[split] == 0:
            raise ConfigError(f"cell {cell.name}: measures.splits names {split}, but env.{split}_size = 0; set it")
        if split not in cell.run.run.eval_splits:
            raise ConfigError(f"cell {cell.name}: measures.splits names {split}, run.eval_splits does not: add it")
    if cell.run.run.iterations < measures.window:
        raise ConfigError(
            f"cell {cell.name}: run.iterations = {cell.run.run.iterations} is less than measures.window = "
            f"{measures.window}; lower the window"
        )


def _refuse_unequal(cells: Sequence[Cell]) -> None:
    first: dict[str, Cell] = {}
    for cell in cells:
        other = first.setdefault(cell.config, cell)
        for key in ("iterations", "groups_per_iteration", "group_size", "eval_episodes"):
            mine, theirs = getattr(cell.run.run, key), getattr(other.run.run, key)
            if mine != theirs:
                raise ConfigError(
                    f"run.{key} is {mine} in cell {cell.name} and {theirs} in {other.name}: arms are compared at equal "
                    "episodes; set it in the config instead of the arm"
                )


def _complaint(path: Path, where: list[int | str], reason: str) -> str:
    key = ".".join(str(part) for part in where)
    return f"{path}: {key}: {reason}" if key else f"{path}: {reason.removeprefix('Value error, ')}"
