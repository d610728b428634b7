"""The episodes of a group share their start and not their luck, and one that is played again has its old luck."""

import asyncio

from milepost.actors.episode import run_episode
from milepost.envs.bandit import TwoArmedBandit
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Task, Trajectory
from tests.actors.episode_rig import ScriptedEngine, resources, trajectory

GROUPS, SIZE = 80, 8


def pulls_of_the_wild_arm(dialogue: Dialogue, episodes: list[tuple[int, int]]) -> list[Trajectory]:
    """One pull in each (group, index); the group's number is its task's seed."""

    async def go() -> list[Trajectory]:
        played = []
        for group, index in episodes:
            env = TwoArmedBandit()
            env.reset(seed=group)
            engine = ScriptedEngine(dialogue, lambda _, arm=env._wild: f"<answer>{arm}</answer>")
            task = Task(env="milepost.envs.bandit:TwoArmedBandit", seed=group, split="train")
            async with resources(dialogue, engine=engine) as here:
                played.append(trajectory(await run_episode(here, task=task, group_id=f"g{group}", index=index)))
        return played

    return asyncio.run(go())


def test_the_pulls_of_one_arm_in_a_group_do_not_all_pay_the_same(dialogue: Dialogue) -> None:
    played = pulls_of_the_wild_arm(dialogue, [(group, index) for group in range(GROUPS) for index in range(SIZE)])
    paid = [[t.reward for t in played[k : k + SIZE]] for k in range(0, len(played), SIZE)]
    # All eight alike with probability .75**8 + .25**8 = .10: 8 +- 3 of 80 groups, with shared luck all of them.
    assert 1 <= sum(len(set(rewards)) == 1 for rewards in paid) <= 24
    assert 0.2 < sum(map(sum, paid)) / len(played) < 0.3
    starts = [{tuple(t.turns[0].prompt_ids) for t in played[k : k + SIZE]} for k in range(0, len(played), SIZE)]
    assert all(len(start) == 1 for start in starts)


def test_an_episode_that_is_played_again_goes_as_it_did(dialogue: Dialogue) -> None:
    episodes = [(0, index) for index in range(20)]
    once, again = (pulls_of_the_wild_arm(dialogue, order) for order in (episodes, episodes[::-1]))
    assert [t.reward for t in once] == [t.reward for t in again][::-1]
    assert {t.reward for t in once} == {0.0, 1.0}
