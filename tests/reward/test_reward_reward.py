from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from milepost.envs.types import Task, Trajectory, Turn, VersionSpan
from milepost.reward.reward import RewardError, TurnText, apply, load_reward


def length_penalty(trajectory: Trajectory, _: Sequence[TurnText]) -> list[float]:
    return [turn.reward - 0.5 * len(turn.response_ids) for turn in trajectory.turns]


class NotAnInstance:
    def __call__(self, trajectory: Trajectory, _: Sequence[TurnText]) -> list[float]:
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


TEXTS = [
    TurnText(observation="left or right?", response="right", next_observation="a wall"),
    TurnText(observation="a wall", response="left", next_observation="out"),
]


def scored(reward: Any, trajectory: Trajectory) -> Trajectory:
    found = apply(reward, trajectory, TEXTS)
    return found if isinstance(found, Trajectory) else asyncio.run(found)


def test_a_reward_replaces_the_rewards_of_the_turns_and_nothing_else(trajectory: Trajectory) -> None:
    found = scored(length_penalty, trajectory)
    assert [t.reward for t in found.turns] == [-1.0, 0.0]
    assert [t.reward for t in trajectory.turns] == [0.0, 1.0]
    assert scored(lambda *_: [0.0, 1.0], found) == trajectory


def test_a_reward_reads_what_was_said(trajectory: Trajectory) -> None:
    def words(_: Trajectory, texts: Sequence[TurnText]) -> list[float]:
        return [float(len(f"{t.observation} {t.response} {t.next_observation}".split())) for t in texts]

    assert [turn.reward for turn in scored(words, trajectory).turns] == [6.0, 4.0]


@pytest.mark.parametrize("number", [0.5, 1, np.float32(0.5), np.array(0.5), torch.tensor(0.5)])
def test_one_number_goes_to_the_last_turn(trajectory: Trajectory, number: Any) -> None:
    assert [turn.reward for turn in scored(lambda *_: number, trajectory).turns] == [0.0, float(number)]


def test_an_async_reward_is_awaited(trajectory: Trajectory) -> None:
    async def judged(_: Trajectory, texts: Sequence[TurnText]) -> float:
        await asyncio.sleep(0)
        return float(texts[-1].next_observation == "out")

    assert [turn.reward for turn in scored(judged, trajectory).turns] == [0.0, 1.0]


def test_what_an_async_reward_raises_becomes_a_reward_error(trajectory: Trajectory) -> None:
    async def judged(*_: object) -> float:
        raise SystemExit(3)

    with pytest.raises(RewardError, match="g/4: SystemExit: 3"):
        scored(judged, trajectory)


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0, 0.0], (0.0,), [], np.zeros((2, 2)), {0.0, 1.0}, None, "1", True])
def test_what_is_neither_a_number_nor_one_per_turn_is_refused(trajectory: Trajectory, values: Any) -> None:
    with pytest.raises(RewardError, match="trajectory g/4: expected one number, or a list of 2 numbers"):
        scored(lambda *_: values, trajectory)


@pytest.mark.parametrize(
    "value", [math.nan, -math.inf, None, "1", True, 10**400, pytest.param(10**5000, id="5000 digits")]
)
def test_a_reward_that_is_no_finite_number_is_refused(trajectory: Trajectory, value: Any) -> None:
    with pytest.raises(RewardError, match="turn 1 must be"):
        scored(lambda *_: [0.0, value], trajectory)


@pytest.mark.parametrize("values", [[1e308, 1e308], [1e12, 1.0], [-1e12, 1e12]])
def test_rewards_that_are_too_large_together_are_a_reward_error(trajectory: Trajectory, values: list[float]) -> None:
    with pytest.raises(RewardError, match=r"g/4: the rewards of an episode add up to .* the limit is 1e\+12"):
        scored(lambda *_: values, trajectory)


@pytest.mark.parametrize(
    "values", [(0.0, 1.0), np.array([0.0, 1.0], np.float32), [np.int64(0), np.array(1.0)], torch.tensor([0.0, 1.0])]
)
def test_tuples_arrays_and_their_numbers_are_rewards(trajectory: Trajectory, values: Any) -> None:
    rewards = [turn.reward for turn in scored(lambda *_: values, trajectory).turns]
    assert rewards == [0.0, 1.0]
    assert {type(reward) for reward in rewards} == {float}


def test_what_a_reward_raises_becomes_a_reward_error(trajectory: Trajectory) -> None:
    with pytest.raises(RewardError, match="g/4: ZeroDivisionError") as caught:
        scored(lambda *_: [1 / 0], trajectory)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_reward_is_loaded_by_its_path(trajectory: Trajectory) -> None:
    assert scored(load_reward(f"{__name__}:length_penalty"), trajectory).reward == -1.0


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
