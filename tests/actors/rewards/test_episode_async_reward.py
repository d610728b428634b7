"""Rewards that are async: side by side on a loop of their own, which outlives episodes, under the deadline of calls."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import Any

import pytest

from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Failure, Trajectory
from milepost.reward.reward import TurnText
from tests.actors.episode_rig import failure, hung_calls, play, resources, task, trajectory


def test_a_reward_sees_what_the_environment_and_the_policy_said(dialogue: Dialogue) -> None:
    seen: list[TurnText] = []

    def reward(_: Trajectory, texts: Sequence[TurnText]) -> float:
        seen.extend(texts)
        return 1.0

    async def one() -> Trajectory:
        async with resources(dialogue, reward=reward) as here:
            return trajectory(await play(here, task()))

    assert [turn.reward for turn in asyncio.run(one()).turns] == [0.0, 0.0, 1.0]
    assert [(t.observation, t.response, t.next_observation) for t in seen] == [
        ("0", "up", "1"),
        ("1", "up", "2"),
        ("2", "up", "3"),
    ]


def test_async_rewards_run_side_by_side_on_one_loop_and_take_no_place(dialogue: Dialogue) -> None:
    loops: list[asyncio.AbstractEventLoop] = []
    all_here = asyncio.Event()

    async def judge(*_: object) -> float:
        loops.append(asyncio.get_running_loop())
        if len(loops) == 3:
            all_here.set()
        await all_here.wait()  # one after the other they would wait for ever
        return 0.25

    async def three() -> list[Any]:
        async with resources(dialogue, reward=judge, threads=1) as here:
            return await asyncio.gather(*(play(here, task(), index) for index in range(3)))

    assert [trajectory(found).reward for found in asyncio.run(three())] == [0.25] * 3
    assert len(set(loops)) == 1


async def leaves(*_: object) -> float:
    raise SystemExit(1)


async def interrupts(*_: object) -> float:
    raise KeyboardInterrupt


async def cancels(*_: object) -> float:
    raise asyncio.CancelledError("mine")


async def cancels_otherwise(*_: object) -> float:
    raise CancelledError("theirs")


async def is_late_itself(*_: object) -> float:
    raise TimeoutError("my own")


async def says_nothing(*_: object) -> None:
    return None


@pytest.mark.parametrize(
    ("reward", "error", "message"),
    [
        (leaves, "RewardError", "reward of trajectory g/0: SystemExit: 1"),
        (interrupts, "RewardError", "reward of trajectory g/0: KeyboardInterrupt"),
        (cancels, "CancelledError", "mine"),
        (cancels_otherwise, "RewardError", "CancelledError: theirs"),
        (is_late_itself, "RewardError", "TimeoutError: my own"),
        (says_nothing, "RewardError", "expected one number, or a list of 3 numbers"),
    ],
)
def test_what_an_async_reward_does_wrongly_ends_its_episode_and_no_other(
    reward: Any, error: str, message: str, dialogue: Dialogue
) -> None:
    async def one() -> Failure:
        async with resources(dialogue, reward=reward) as here:
            found = failure(await play(here, task()))
            here.reward = lambda *_: 0.0
            trajectory(await play(here, task()))
            return found

    found = asyncio.run(one())
    assert (found.boundary, found.error, found.turn) == ("reward", error, 3)
    assert message in found.message


def test_an_async_reward_that_waits_too_long_is_cancelled_and_leaves_nothing_behind(dialogue: Dialogue) -> None:
    ended: list[str] = []

    async def waits(*_: object) -> float:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")
        return 1.0

    async def one() -> Failure:
        async with resources(dialogue, reward=waits, env_timeout_s=0.5) as here:
            found = failure(await play(here, task()))
            assert (here.hung, ended) == (0, ["cancelled"])
            return found

    found = asyncio.run(one())
    assert (found.boundary, found.error) == ("reward", "TimeoutError")
    assert found.message == "reward did not return within actors.env_timeout_s = 0.5"


def test_an_async_reward_that_holds_its_loop_is_counted_as_hung(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milepost.actors.user_code._GRACE_S", 0.1)

    async def holds(*_: object) -> float:
        hung_calls.hang()
        return 1.0

    async def one() -> Failure:
        async with resources(dialogue, reward=holds, env_timeout_s=0.5) as here:
            found = failure(await play(here, task()))
            assert (here.hung, hung_calls.now) == (1, 1)
            return found

    assert asyncio.run(one()).message == "reward did not return within actors.env_timeout_s = 0.5"
