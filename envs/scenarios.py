"""Which tasks there are: a training, a held-out and an out-of-distribution split of one environment.

Splits draw their seeds from disjoint ranges, so they never share one. Different seeds may still start in the same state
(a small lake has few maps): with `distinct_starts` every task of every split starts in a state of its own, so no
held-out score comes from a start seen in training. Not promised: that states met later in an episode are new.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from milepost.envs import chance
from milepost.envs.contract import build_env, observe_reset
from milepost.envs.types import OptionValue, Split, Task, check_options

SEEDS_PER_SPLIT = 2**20
_TRIES_PER_TASK = 50


class ScenarioError(ValueError):
    """A scenario set cannot be made as it was asked for."""


class ScenarioConfig(BaseModel):
    """Which environment is played, and from how many starts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field("milepost.envs.frozen_lake:FrozenLakeText", description="Environment class, package.module:Class")
    options: dict[str, OptionValue] = Field(
        {},
        description="Environment options: keyword arguments of its constructor, lists and tables included, and cohort, "
        "to tell success by",
    )
    ood_options: dict[str, OptionValue] = Field(
        {}, description="Out-of-distribution options: what that split changes in options; a table replaces a whole one"
    )
    train_size: int = Field(512, description="Training split size, in tasks", ge=1, le=SEEDS_PER_SPLIT)
    heldout_size: int = Field(64, description="Held-out split size, in tasks", ge=0, le=SEEDS_PER_SPLIT)
    ood_size: int = Field(0, description="Out-of-distribution split size, in tasks", ge=0, le=SEEDS_PER_SPLIT)
    seed: int = Field(
        0, description="Random seed of the tasks: another one draws other tasks in another order", ge=0, le=2**31
    )
    distinct_starts: bool = Field(
        False,
        description="Deduplicate start states over all splits: the environment is reset once per task when the "
        "set is made, and tasks that start where another one does are left out",
    )

    @field_validator("options", "ood_options")
    @classmethod
    def _travel(cls, options: dict[str, OptionValue]) -> dict[str, OptionValue]:
        check_options(options)
        return options


class ScenarioSet:
    """The tasks of a configuration. Equal configurations give equal sets, in every process.

    Raises `ScenarioError` where `distinct_starts` finds too few states, and what building or resetting the environment
    raises.
    """

    def __init__(self, config: ScenarioConfig) -> None:
        self.config = config
        self._sizes: dict[Split, int] = {
            "train": config.train_size,
            "heldout": config.heldout_size,
            "ood": config.ood_size,
        }
        self._seeds = self._distinct_seeds() if config.distinct_starts else self._first_seeds()

    def task(self, split: Split, index: int) -> Task:
        """Task `index` of a split; raises IndexError outside 0 .. size - 1."""
        if not 0 <= index < self._sizes[split]:
            raise IndexError(f"split {split} has {self._sizes[split]} tasks, there is no task {index}")
        return self._make(split, self._seeds[split][index])

    def tasks(self, split: Split) -> list[Task]:
        """All tasks of a split, in order."""
        return [self._make(split, seed) for seed in self._seeds[split]]

    def schedule(self, sequence: int) -> Task:
        """The training task at place `sequence` >= 0 of an endless order that is shuffled anew in every epoch."""
        if sequence < 0:
            raise IndexError(f"the schedule starts at 0, there is no place {sequence}")
        epoch, place = divmod(sequence, self.config.train_size)
        return self.task("train", _epoch_order(self.config.seed, epoch, self.config.train_size)[place])

    def _make(self, split: Split, seed: int) -> Task:
        options = self.config.options | (self.config.ood_options if split == "ood" else {})
        return Task(env=self.config.path, seed=seed, split=split, options=options)

    def _range(self, split: Split) -> range:
        """The seeds a split may draw from: no two splits of any two `config.seed` share one."""
        splits: tuple[Split, ...] = get_args(Split)
        start = (self.config.seed * len(splits) + splits.index(split)) * SEEDS_PER_SPLIT
        return range(start, start + SEEDS_PER_SPLIT)

    def _first_seeds(self) -> dict[Split, list[int]]:
        return {split: list(self._range(split)[:size]) for split, size in self._sizes.items()}

    def _distinct_seeds(self) -> dict[Split, list[int]]:
        # The training split chooses last: what it leaves over would be a biased sample to measure on.
        order: tuple[Split, ...] = ("heldout", "ood", "train")
        taken: set[str] = set()
        return {split: self._untaken_seeds(split, self._sizes[split], taken) for split in order}

    def _untaken_seeds(self, split: Split, size: int, taken: set[str]) -> list[int]:
        if size == 0:
            return []
        env = build_env(self.config.path, self._make(split, 0).options)
        seeds: list[int] = []
        try:
            for seed in self._range(split)[: _TRIES_PER_TASK * size]:
                later = chance.episode_seed(seed, "start", 0)
                anchor = observe_reset(chance.reset(env, seed=seed, later=later)).anchor
                if anchor not in taken:
                    taken.add(anchor)
                    seeds.append(seed)
                if len(seeds) == size:
                    return seeds
        finally:
            env.close()
        raise ScenarioError(
            f"split {split} wants {size} tasks with starts of their own, but {_TRIES_PER_TASK * size} seeds gave only "
            f"{len(seeds)}: make the splits smaller, vary the environment's options, or set distinct_starts = false"
        )


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, size: int) -> tuple[int, ...]:
    order = list(range(size))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return tuple(order)
