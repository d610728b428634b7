"""A judge as the reward: the mean of its scores for the last turn, and no reward at all where it gives none."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Task, Trajectory, Turn, VersionSpan
from milepost.reward.judges.config import JudgeRefused
from milepost.reward.judges.reward import JudgeReward
from milepost.reward.reward import RewardError, TurnText, apply
from tests.actors.episode_rig import failure, play, resources, task
from tests.reward.judges.judge_rig import serving, user_text, verdict, write_judge

TEXTS = [
    TurnText(observation="Refund it.", response="I refund.", next_observation="Done."),
    TurnText(observation="Done.", response="It is refunded.", next_observation=""),
]


def turn(tool: dict[str, Any] | None = None) -> Turn:
    return Turn(
        prompt_ids=[1], response_ids=[2], logprobs=[-1.0], versions=[VersionSpan(version=0, start=0, end=1)],
        anchor="a", next_anchor="b", action="go", reward=0.5, tool=tool,
    )  # fmt: skip


EPISODE = Trajectory(
    task=Task(env="m:E", seed=0, split="train"),
    group_id="g",
    index=0,
    turns=[turn({"violations": ["no policy"]}), turn()],
    outcome="failure",
)


def scored(reward: JudgeReward) -> Trajectory:
    found = apply(reward, EPISODE, TEXTS)
    assert isinstance(found, Coroutine)
    return asyncio.run(found)


def test_the_last_turn_gets_the_score_and_the_outcome_stays_the_environments(tmp_path: Path) -> None:
    with serving(lambda body: verdict(body, score=4)) as served:
        found = scored(JudgeReward(write_judge(tmp_path, served.url)))
    assert [each.reward for each in found.turns] == [0.0, 0.75]
    assert msgspec.structs.replace(found, turns=EPISODE.turns) == EPISODE
    shown = user_text(served.asked[0]).splitlines()
    assert shown[0] == "The environment reports: failure."
    assert shown[2:-2] == [
        '{"by": "task", "text": "Refund it."}',
        '{"by": "agent", "turn": 0, "text": "I refund."}',
        '{"by": "environment", "turn": 0, "text": "Done."}',
        '{"by": "broken rule", "turn": 0, "text": "no policy"}',
        '{"by": "agent", "turn": 1, "text": "It is refunded."}',
    ]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda _: "no", "JudgementFailed: judge tester: asked 1 times: not one JSON object alone"),
        (lambda body: verdict(body, outcome="success"), "it says outcome success, the environment reported failure"),
    ],
)
def test_an_episode_that_is_not_judged_has_no_reward(tmp_path: Path, answer: Any, told: str) -> None:
    with serving(answer) as served, pytest.raises(RewardError) as raised:
        scored(JudgeReward(write_judge(tmp_path, served.url)))
    assert told in str(raised.value)


def test_in_a_worker_it_is_a_failure_of_the_reward_and_not_a_zero(tmp_path: Path, dialogue: Dialogue) -> None:
    async def one(reward: JudgeReward) -> str:
        async with resources(dialogue, reward=reward) as here:
            found = failure(await play(here, task()))
            return f"{found.boundary} {found.message}"

    with serving(lambda _: "no") as served:
        told = asyncio.run(one(JudgeReward(write_judge(tmp_path, served.url))))
    assert told.startswith("reward reward of trajectory g/0: JudgementFailed: judge tester: asked 1 times")


def test_a_file_that_is_wrong_is_refused_where_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(JudgeRefused, match="No such file"):
        JudgeReward(tmp_path / "none.toml")
