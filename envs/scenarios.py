"""Which tasks there are: a training, a held-out and an out-of-distribution split of every environment of a run.

Splits draw their seeds from disjoint ranges, those of different environments too, so they never share one. Different
seeds may still start in the same state (a small lake has few maps): with `distinct_starts` every task of every split of
an environment starts in a state of its own, so no held-out score comes from a start seen in training. Not promised:
that states met later in an episode are new.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from milepost.envs import chance
from milepost.envs.contract import build_env, observe_reset
from milepost.envs.types import OptionValue, Split, Task, check_options

SEEDS_PER_SPLIT = 2**20
MAX_ENVIRONMENTS = 64
_TRIES_PER_TASK = 50
_OTHER_CANDIDATES = 31
_REVISITED_SHARE = 0.2
_EPOCHS_KEPT = 2
"""Orders kept by an environment: numbers that a lost worker gave back come late."""


class ScenarioError(ValueError):
    """A scenario set cannot be made as it was asked for."""


class ScenarioConfig(BaseModel):
    """An environment and its tasks: one table [env], or several [[env]] in one run, each with a name and a share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        "",
        pattern=r"^([a-z0-9][a-z0-9_-]{0,40})?$",
        description="Name of the environment in records and in --set env.NAME.key; [[env]] needs one",
    )
    share: float = Field(
        1.0,
        gt=0,
        description="Share of the training groups in proportion to the shares of the other [[env]] tables",
    )
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
    curriculum: Literal["none", "success"] = Field(
        "none",
        description="Curriculum of the training tasks: none plays each once an epoch; success plays those that were "
        "solved lately in 10 to 90 % of their episodes, and in one of five groups one that is left out",
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


@dataclass(frozen=True, slots=True)
class Candidates:
    """Training tasks of one environment, of which one is to be played next."""

    tasks: tuple[Task, ...]
    """The scheduled one first; the only one without a curriculum."""
    revisits: bool = False
    """Whether it is the turn of a task that the curriculum leaves out."""


class EnvScenarios:
    """The tasks of one environment.

    Raises `ScenarioError` where `distinct_starts` finds too few states, and what building or resetting the environment
    raises.
    """

    def __init__(self, config: ScenarioConfig, place: int = 0) -> None:
        """`place` is that of the environment among those of the run: each place has seeds of its own."""
        self.config = config
        self._place = place
        self._sizes: dict[Split, int] = {
            "train": config.train_size,
            "heldout": config.heldout_size,
            "ood": config.ood_size,
        }
        self._seeds = self._distinct_seeds() if config.distinct_starts else self._first_seeds()
        self._orders: dict[int, list[int]] = {}

    def task(self, split: Split, index: int) -> Task:
        """Task `index` of a split; raises IndexError outside 0 .. size - 1."""
        if not 0 <= index < self._sizes[split]:
            raise IndexError(f"split {split} has {self._sizes[split]} tasks, there is no task {index}")
        return self._make(split, self._seeds[split][index])

    def tasks(self, split: Split) -> list[Task]:
        """All tasks of a split, in order."""
        return [self._make(split, seed) for seed in self._seeds[split]]

    def schedule(self, place: int) -> Task:
        """The training task at `place` of an endless order that is shuffled anew in every epoch."""
        epoch, index = divmod(place, self.config.train_size)
        if epoch not in self._orders:
            newest = sorted([*self._orders, epoch])[-_EPOCHS_KEPT:]
            self._orders = {known: self._orders.get(known) or self._epoch_order(known) for known in {*newest, epoch}}
        return self.task("train", self._orders[epoch][index])

    def candidates(self, place: int) -> Candidates:
        """What may be played at `place`: the scheduled task, and with a curriculum others, drawn at random."""
        if self.config.curriculum == "none":
            return Candidates((self.schedule(place),))
        rng = random.Random(f"{self.config.name}/{self.config.seed}/candidates/{place}")
        others = [self.task("train", rng.randrange(self.config.train_size)) for _ in range(_OTHER_CANDIDATES)]
        return Candidates((self.schedule(place), *others), rng.random() < _REVISITED_SHARE)

    def _epoch_order(self, epoch: int) -> list[int]:
        order = list(range(self.config.train_size))
        random.Random("/".join(filter(None, (self.config.name, f"{self.config.seed}/{epoch}")))).shuffle(order)
        return order

    def _make(self, split: Split, seed: int) -> Task:
        options = self.config.options | (self.config.ood_options if split == "ood" else {})
        return Task(env=self.config.path, seed=seed, split=split, options=options, env_name=self.config.name)

    def _range(self, split: Split) -> range:
        """The seeds a split may draw from: no two splits of any two `config.seed` or places share one."""
        splits: tuple[Split, ...] = get_args(Split)
        block = self.config.seed * MAX_ENVIRONMENTS + self._place
        start = (block * len(splits) + splits.index(split)) * SEEDS_PER_SPLIT
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


class ShareOrder:
    """The order in which K take turns by share, the same in every process, with nothing drawn at random.

    It is Tijdeman's solution of the chairman assignment problem (Discrete Mathematics
    32, 1980): after n turns, the number of turns of each differs from n times its share by at most 1 - 1 / (2 K - 2).
    Shares of 3 and 1 make the order 0, 0, 1, 0, and again.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        """`shares` are K positive numbers; they need not add up to 1."""
        total = sum(shares)
        self._shares = [share / total for share in shares]
        self._counts = [0] * len(self._shares)
        self._order: list[tuple[int, int]] = []

    def at(self, place: int) -> tuple[int, int]:
        """Whose turn it is at `place`, from 0, and how many turns it had before."""
        if len(self._shares) == 1:
            return 0, place
        while len(self._order) <= place:
            self._extend()
        return self._order[place]

    def _extend(self) -> None:
        """Of those that may have a turn without being ahead of their share, the one that must have it soonest."""
        slack = 1 / (2 * len(self._shares) - 2)
        turns = len(self._order) + 1
        behind = [turns * share - count for share, count in zip(self._shares, self._counts, strict=True)]
        may = [k for k, lag in enumerate(behind) if lag >= slack] or range(len(behind))  # rounding may leave nobody
        chosen = min(may, key=lambda k: (1 - slack - behind[k]) / self._shares[k])
        self._order.append((chosen, self._counts[chosen]))
        self._counts[chosen] += 1


class ScenarioSet:
    """The tasks of all environments of a run. Equal configurations give equal sets, in every process.

    Raises `ScenarioError` for no environment or more than `MAX_ENVIRONMENTS`, and what `EnvScenarios` raises.
    """

    def __init__(self, configs: ScenarioConfig | Sequence[ScenarioConfig]) -> None:
        several = (configs,) if isinstance(configs, ScenarioConfig) else configs
        if not 0 < len(several) <= MAX_ENVIRONMENTS:
            raise ScenarioError(f"a run plays 1 to {MAX_ENVIRONMENTS} environments, not {len(several)}")
        self.envs = tuple(EnvScenarios(config, place) for place, config in enumerate(several))
        self._order = ShareOrder([config.share for config in several])

    def tasks(self, split: Split) -> list[Task]:
        """All tasks of a split, one environment after the other."""
        return [task for env in self.envs for task in env.tasks(split)]

    def schedule(self, sequence: int) -> Task:
        """The training task at place `sequence` >= 0 of an endless order.

        Environments take turns by share, as `ShareOrder` has it; the tasks of each are shuffled anew in every epoch.
        """
        return self.candidates(sequence).tasks[0]

    def candidates(self, sequence: int) -> Candidates:
        """What may be played at place `sequence` >= 0 of that order, the scheduled task first."""
        if sequence < 0:
            raise IndexError(f"the schedule starts at 0, there is no place {sequence}")
        env, place = self._order.at(sequence)
        return self.envs[env].candidates(place)

    def by_share(self, count: int) -> list[Task]:
        """`count` training tasks: environments take turns by share, the tasks of each in order, again and again."""
        turns = [self._order.at(place) for place in range(count)]
        return [self.envs[env].task("train", k % self.envs[env].config.train_size) for env, k in turns]
