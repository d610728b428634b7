"""The example program: what it does with good answers and with too many, as turns, lineages and credit."""

import asyncio
from typing import Any

from openai import AsyncOpenAI

from examples.agent.desk import Desk, run
from milepost.actors.agents.calls import EpisodeCalls
from milepost.envs.types import Group, Task, Trajectory
from milepost.learner.credit.assignment import from_group
from milepost.learner.credit.strategies.crbc import CRBC, CRBCConfig
from tests.actors.agents.agent_rig import SayingEngine, episode_calls, serving
from tests.actors.agents.clerk import Clerk

TASK = {"seed": 3, "options": {"orders": 3}}


def play(answer: str | None) -> tuple[dict[str, Any], EpisodeCalls]:
    async def go() -> dict[str, Any]:
        async with serving(calls) as (url, key), AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as client:
            return await run(TASK, client)

    calls = episode_calls(SayingEngine(Clerk(Desk(3, 3), answer)))
    return asyncio.run(go()), calls


def test_looking_every_order_up_earns_the_reward_in_one_lineage():
    result, calls = play(str(Desk(3, 3).sum))
    assert result == {"reward": 1.0, "success": True}
    assert {turn.lineage for turn in calls.turns(1.0)} == {0}


def test_a_sum_of_the_history_and_what_goes_on_from_it_are_lineages_of_their_own():
    result, calls = play(None)
    assert result["success"] is False
    turns = calls.turns(0.0)
    assert [turn.lineage for turn in turns] == [0, 0, 0, 0, 1, 2, 2, 2, 2, 3]
    assert [turn.parent_lineage for turn in turns if turn.lineage in (1, 2)] == [0, 1, None, None, None]


def test_a_good_call_and_a_bad_one_of_the_same_episode_differ_in_credit():
    """Both begin with `orders_of`; then one looks the price up and is right, the other guesses."""

    def trajectory(index: int, answers: list[str], reward: float) -> Trajectory:
        calls = episode_calls(SayingEngine(_following(answers)))

        async def go() -> None:
            async with serving(calls) as (url, key), AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as client:
                await run(TASK, client)

        asyncio.run(go())
        task = Task(env="examples.agent.desk:run", seed=3, split="train")
        outcome = "success" if reward else "failure"
        return Trajectory(task=task, group_id="g", index=index, turns=calls.turns(reward), outcome=outcome)

    right = Clerk(Desk(3, 3), str(Desk(3, 3).sum)).left
    group = [trajectory(0, list(right), 1.0), trajectory(1, [right[0], "0"], 0.0), trajectory(2, ["0"], 0.0)]
    credit = CRBC(CRBCConfig()).assign(from_group(Group(group_id="g", task=group[0].task, trajectories=group)))
    looked_up, guessed = credit.total[1]
    assert looked_up > guessed
    assert credit.step_adv[1][0] > 0 > credit.step_adv[1][1]


def _following(answers: list[str]) -> Any:
    left = list(answers)
    return lambda _: left.pop(0)
