from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from milepost.envs.types import Task, Trajectory, Turn, VersionSpan
from milepost.reward.reward import RewardError, apply, load_reward


def length_penalty(trajectory: Trajectory) -> list[float]:
    return [turn.reward - 0.5 * len(turn.response_ids) for turn in trajectory.turns]


class NotAnInstance:
    def __call__(self, trajectory: Trajectory) -> list[float]:
        return [0.0 for _ in trajectory.turns]


a_number = 3


def turn(reward: float) -> Turn:
    span = VersionSpan(version=0, start=0, end=2)
    return Turn(
        prompt_ids=[1], response_ids=[2, 3], logprobs=[-1.0, -1.0], versions=[span],
        anchor="a", next_anchor="b", action="go", reward=reward,
    )  # fmt: skip


@pytest.fixture
def trajectory() -> Trajectory:
    task = Task(env="m:E", seed=0, split="train")
    return Trajectory(task=task, group_id="g", index=4, turns=[turn(0.0), turn(1.0)], outcome="success")


def test_a_reward_replaces_the_rewards_of_the_turns_and_nothing_else(trajectory: Trajectory) -> None:
    scored = apply(length_penalty, trajectory)
    assert [t.reward for t in scored.turns] == [-1.0, 0.0]
    assert [t.reward for t in trajectory.turns] == [0.0, 1.0]
    assert apply(lambda _: [0.0, 1.0], scored) == trajectory


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0, 0.0], (0.0,), np.zeros((2, 2)), {0.0, 1.0}, None, 1.0])
def test_a_wrong_number_of_rewards_is_refused(trajectory: Trajectory, values: Any) -> None:
    with pytest.raises(RewardError, match="trajectory g/4: expected a list of 2 numbers"):
        apply(lambda _: values, trajectory)


@pytest.mark.parametrize(
    "value", [math.nan, -math.inf, None, "1", True, 10**400, pytest.param(10**5000, id="5000 digits")]
)
def test_a_reward_that_is_no_finite_number_is_refused(trajectory: Trajectory, value: Any) -> None:
    with pytest.raises(RewardError, match="turn 1 must be"):
        apply(lambda _: [0.0, value], trajectory)


@pytest.mark.parametrize("values", [[1e308, 1e308], [1e12, 1.0], [-1e12, 1e12]])
def test_rewards_that_are_too_large_together_are_a_reward_error(trajectory: Trajectory, values: list[float]) -> None:
    with pytest.raises(RewardError, match=r"g/4: the rewards of an episode add up to .* the limit is 1e\+12"):
        apply(lambda _: values, trajectory)


@pytest.mark.parametrize(
    "values", [(0.0, 1.0), np.array([0.0, 1.0], np.float32), [np.int64(0), np.array(1.0)], torch.tensor([0.0, 1.0])]
)
def test_tuples_arrays_and_their_numbers_are_rewards(trajectory: Trajectory, values: Any) -> None:
    rewards = [turn.reward for turn in apply(lambda _: values, trajectory).turns]
    assert rewards == [0.0, 1.0]
    assert {type(reward) for reward in rewards} == {float}


def test_what_a_reward_raises_becomes_a_reward_error(trajectory: Trajectory) -> None:
    with pytest.raises(RewardError, match="g/4: ZeroDivisionError") as caught:
        apply(lambda _: [1 / 0], trajectory)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_reward_is_loaded_by_its_path(trajectory: Trajectory) -> None:
    assert apply(load_reward(f"{__name__}:length_penalty"), trajectory).reward == -1.0


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("no_colon", "not of the form"),
        ("no_such_module:f", "no module named 'no_such_module'"),
        (f"{__name__}:missing", "has no 'missing'"),
        (f"{__name__}:a_number", "name a function"),
        (f"{__name__}:NotAnInstance", "name a function or an instance"),
    ],
)
def test_a_path_that_names_no_reward_says_why(path: str, why: str) -> None:
    with pytest.raises(RewardError, match=why):
        load_reward(path)
