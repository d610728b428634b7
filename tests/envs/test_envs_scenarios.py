from __future__ import annotations

from typing import Any, get_args

import gymnasium
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.envs.contract import EnvPathError, build_env
from milepost.envs.scenarios import SEEDS_PER_SPLIT, EnvScenarios, ScenarioConfig, ScenarioError, ScenarioSet
from milepost.envs.types import Split, Task

SPLITS: tuple[Split, ...] = get_args(Split)
SIZE = st.integers(1, 200)


@given(train=SIZE, heldout=SIZE, ood=SIZE, seed=st.integers(0, 2**31))
def test_no_two_tasks_of_any_split_or_config_seed_share_a_seed(train: int, heldout: int, ood: int, seed: int) -> None:
    config = ScenarioConfig(train_size=train, heldout_size=heldout, ood_size=ood, seed=seed)
    other = config.model_copy(update={"seed": seed + 1})
    tasks = [task for c in (config, other) for split in SPLITS for task in ScenarioSet(c).tasks(split)]
    assert len(tasks) == 2 * (train + heldout + ood)
    assert len({task.seed for task in tasks}) == len(tasks)
    assert all(task.seed >= 0 for task in tasks)


def test_the_largest_splits_touch_but_do_not_overlap() -> None:
    scenarios = EnvScenarios(ScenarioConfig(train_size=SEEDS_PER_SPLIT, heldout_size=1, ood_size=1))
    last = scenarios.task("train", SEEDS_PER_SPLIT - 1).seed
    assert [last + 1, last + 1 + SEEDS_PER_SPLIT] == [scenarios.task(split, 0).seed for split in ("heldout", "ood")]
    with pytest.raises(pydantic.ValidationError, match="train_size"):
        ScenarioConfig(train_size=SEEDS_PER_SPLIT + 1)


@given(size=st.integers(1, 60), seed=st.integers(0, 100), epoch=st.integers(0, 5))
def test_every_epoch_of_the_schedule_plays_every_training_task_once(size: int, seed: int, epoch: int) -> None:
    scenarios = ScenarioSet(ScenarioConfig(train_size=size, seed=seed))
    played = [scenarios.schedule(epoch * size + place) for place in range(size)]
    assert sorted(task.seed for task in played) == [task.seed for task in scenarios.tasks("train")]
    again = ScenarioSet(ScenarioConfig(train_size=size, seed=seed))
    assert [again.schedule(epoch * size + place) for place in range(size)] == played


def test_every_epoch_has_its_own_order() -> None:
    scenarios = ScenarioSet(ScenarioConfig(train_size=50))
    epochs = [[scenarios.schedule(epoch * 50 + place).seed for place in range(50)] for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != sorted(epochs[0])


def test_the_ood_split_changes_only_the_options_it_names() -> None:
    config = ScenarioConfig(options={"size": 4, "max_steps": 8}, ood_options={"size": 6}, ood_size=1)
    scenarios = EnvScenarios(config)
    assert scenarios.task("heldout", 0).options == {"size": 4, "max_steps": 8}
    assert scenarios.task("ood", 0).options == {"size": 6, "max_steps": 8}
    assert scenarios.task("ood", 0).split == "ood"


def test_what_an_environment_does_to_its_options_is_no_change_of_its_task() -> None:
    class Eats(gymnasium.Env):
        def __init__(self, *, words: list[str]) -> None:
            self.word = words.pop()

    task = Task(env="x:Y", seed=0, split="train", options={"words": ["a", "b"]})
    assert [build_env(Eats, task.options).word for _ in range(2)] == ["b", "b"]
    assert task == Task(env="x:Y", seed=0, split="train", options={"words": ["a", "b"]})


def test_a_split_may_be_a_cohort_of_its_own() -> None:
    config = ScenarioConfig(options={"cohort": "4x4"}, ood_options={"cohort": "6x6", "size": 6}, ood_size=1)
    scenarios = EnvScenarios(config)
    assert scenarios.task("train", 0).cohort == "4x4"
    assert scenarios.task("ood", 0).cohort == "6x6"
    assert EnvScenarios(ScenarioConfig()).task("train", 0).cohort == ""


@pytest.mark.parametrize("cohort", [3, True, "x" * 65, "a\tb"])
def test_an_option_that_names_no_cohort_is_refused(cohort: Any) -> None:
    with pytest.raises(pydantic.ValidationError, match="at most 64 printable characters"):
        ScenarioConfig(ood_options={"cohort": cohort})
    with pytest.raises(ValueError, match="at most 64 printable characters"):
        Task(env="x:Y", seed=0, split="train", options={"cohort": cohort})


def test_distinct_starts_leave_no_held_out_map_in_training() -> None:
    config = ScenarioConfig(train_size=60, heldout_size=30, ood_size=10, ood_options={"max_steps": 20})

    def starts(config: ScenarioConfig) -> list[str]:
        scenarios = ScenarioSet(config)
        tasks = [task for split in SPLITS for task in scenarios.tasks(split)]
        assert len({task.seed for task in tasks}) == 100
        return [build_env(task.env, task.options).reset(seed=task.seed)[1]["anchor"] for task in tasks]

    assert len(set(starts(config))) < 100  # 4 x 4 maps repeat, so seeds alone are no protection
    assert len(set(starts(config.model_copy(update={"distinct_starts": True})))) == 100


def test_too_few_distinct_starts_are_refused() -> None:
    path = "tests.broken_envs:CountingEnv"
    with pytest.raises(ScenarioError, match=r"split heldout wants 2 tasks .* 100 seeds gave only 1"):
        ScenarioSet(ScenarioConfig(path=path, train_size=1, heldout_size=2, distinct_starts=True))
    with pytest.raises(EnvPathError, match="NoSuchEnv"):
        ScenarioSet(ScenarioConfig(path="tests.broken_envs:NoSuchEnv", distinct_starts=True))


def test_a_task_outside_its_split_is_refused() -> None:
    scenarios = ScenarioSet(ScenarioConfig(heldout_size=2))
    for index in (-1, 2):
        with pytest.raises(IndexError, match=f"split heldout has 2 tasks, there is no task {index}"):
            scenarios.envs[0].task("heldout", index)
    with pytest.raises(IndexError, match="no place -1"):
        scenarios.schedule(-1)


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="heldout_sise"):
        ScenarioConfig.model_validate({"heldout_sise": 3})
