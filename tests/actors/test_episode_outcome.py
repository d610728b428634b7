"""How an episode that nothing went wrong with ends: success, failure or truncated."""

import asyncio
from typing import Any

import pytest

from milepost.actors.engine import Completion
from milepost.envs.bandit import TwoArmedBandit
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Trajectory
from tests.actors.episode_rig import HERE, ScriptedEngine, completion, play, resources, task


@pytest.mark.parametrize(
    ("options", "outcome"),
    [
        ({"terminated": True, "success": 1}, "success"),
        ({"terminated": True, "success": 0, "reward": 1.0}, "failure"),  # what the environment says goes before reward
        ({"terminated": True, "reward": 0.5}, "success"),
        ({"terminated": True, "reward": 0.0}, "failure"),
        ({"terminated": True, "reward": -1.0}, "failure"),
        ({"terminated": False, "truncated": True}, "truncated"),
        ({"terminated": False, "truncated": True, "reward": 1.0}, "truncated"),
        ({"terminated": False, "truncated": True, "success": 1}, "success"),
        ({"terminated": True, "truncated": True, "success": 0}, "failure"),
    ],
)
def test_the_outcome_is_what_the_environment_says(options: dict[str, Any], outcome: str, dialogue: Dialogue) -> None:
    async def one() -> Trajectory:
        async with resources(dialogue) as here:
            found = await play(here, task(f"{HERE}:Ends", **options))
            assert isinstance(found, Trajectory)
            return found

    found = asyncio.run(one())
    assert (found.outcome, len(found.turns)) == (outcome, 1)
    assert found.success_reported == ("success" in options)


def test_a_success_that_is_for_people_is_the_outcome_and_nothing_to_learn_from(dialogue: Dialogue) -> None:
    async def one() -> Trajectory:
        env = TwoArmedBandit()
        env.reset(seed=0)
        engine = ScriptedEngine(dialogue, lambda _: f"<answer>{env._wild}</answer>")
        async with resources(dialogue, engine=engine) as here:
            found = await play(here, task("milepost.envs.bandit:TwoArmedBandit"))
            assert isinstance(found, Trajectory)
            return found

    found = asyncio.run(one())
    assert (found.outcome, found.success_reported) == ("success", False)


def test_an_episode_with_no_turns_left_is_truncated(dialogue: Dialogue) -> None:
    async def one() -> Trajectory:
        async with resources(dialogue, max_turns=4) as here:
            found = await play(here, task(target=5))
            assert isinstance(found, Trajectory)
            return found

    found = asyncio.run(one())
    assert (found.outcome, len(found.turns)) == ("truncated", 4)
    assert not found.context_full


def test_a_turn_says_whether_its_response_was_cut(dialogue: Dialogue) -> None:
    class CutsEverySecond(ScriptedEngine):
        asked = 0

        async def generate(self, prompt_ids: list[int]) -> Completion:
            self.asked += 1
            whole = await super().generate(prompt_ids)
            return completion(whole.response_ids, stopped=self.asked % 2 == 1)

    async def one() -> Trajectory:
        async with resources(dialogue, max_turns=3, engine=CutsEverySecond(dialogue)) as here:
            found = await play(here, task(target=5))
            assert isinstance(found, Trajectory)
            return found

    assert [turn.stopped for turn in asyncio.run(one()).turns] == [True, False, True]


def test_an_episode_whose_context_is_full_is_truncated_and_keeps_its_turns(dialogue: Dialogue) -> None:
    async def one() -> Trajectory:
        async with resources(dialogue, max_turns=10**6, max_prompt_tokens=100) as here:
            found = await play(here, task(f"{HERE}:Lengthy"))
            assert isinstance(found, Trajectory)
            return found

    found = asyncio.run(one())
    assert (found.outcome, found.context_full) == ("truncated", True)
    per_turn = len(dialogue.response("up")) + len(dialogue.continuation("0 ", closed=True))
    lengths = [len(turn.prompt_ids) for turn in found.turns]
    assert lengths == list(range(lengths[0], 101, per_turn))  # the last prompt that fits was answered
    assert len(lengths) > 2


def test_a_window_keeps_an_episode_going_where_its_whole_context_would_be_full(dialogue: Dialogue) -> None:
    async def one() -> Trajectory:
        async with resources(dialogue, max_turns=30, max_prompt_tokens=100, window_turns=2) as here:
            found = await play(here, task(f"{HERE}:Lengthy"))
            assert isinstance(found, Trajectory)
            return found

    found = asyncio.run(one())
    assert (found.outcome, len(found.turns)) == ("truncated", 30)
