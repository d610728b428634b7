"""Twenty episodes of each world, played as a worker plays them, by a random policy behind the real engine."""

from __future__ import annotations

import asyncio

import pytest

from milepost.envs import chance
from milepost.envs.contract import build_env, observe_reset
from milepost.envs.dialogue import Dialogue
from milepost.envs.messages import messages_of
from milepost.envs.types import OptionValue, Task, Trajectory
from tests.actors.episode_rig import play, resources, trajectory
from tests.actors.running_engine import RunningEngine
from tests.worlds.conftest import CONTEXT

pytestmark = [pytest.mark.sweep, pytest.mark.services, pytest.mark.timeout(2400)]
HERE = "milepost.envs.adapters"
WORLDS: dict[str, tuple[str, dict[str, OptionValue]]] = {
    "reasoning-gym": (f"{HERE}.reasoning_gym_env:ReasoningGym", {"dataset": "chain_sum", "config": {"max_terms": 3}}),
    "TextArena": (f"{HERE}.textarena_env:TextArenaGame", {"game": "FrozenLake-v0"}),
    "TextArena of two": (f"{HERE}.textarena_env:TextArenaGame", {"game": "TicTacToe-v0", "opponent": "random"}),
    "TextWorld": (f"{HERE}.textworld_env:TextWorldGame", {"max_steps": 3}),
    "tau2": (f"{HERE}.tau2_env:Tau2", {"domain": "retail"}),
    "BFCL": (f"{HERE}.bfcl_env:BfclMultiTurn", {}),
}
SEEDS, EPISODES = (3, 4, 5, 6, 7), 4


@pytest.mark.parametrize("world", WORLDS)
def test_twenty_episodes_end_with_an_outcome_and_start_with_what_the_package_says(
    world: str, world_engine: RunningEngine, world_dialogue: Dialogue
) -> None:
    path, options = WORLDS[world]
    tasks = {seed: Task(env=path, seed=seed, split="heldout", options=options) for seed in SEEDS}

    async def play_all() -> list[Trajectory]:
        limits = {"env_timeout_s": 300, "episode_timeout_s": 600, "max_prompt_tokens": CONTEXT - 24}
        limits["max_observation_chars"] = 100_000
        async with resources(world_dialogue, engine=world_engine.engine, threads=4, **limits) as here:
            everything = [play(here, tasks[seed], index) for seed in SEEDS for index in range(EPISODES)]
            return [trajectory(result) for result in await asyncio.gather(*everything)]

    done = world_engine.run(play_all(), timeout_s=800)
    assert len(done) == 20
    assert {each.outcome for each in done} <= {"success", "failure", "truncated"}
    firsts = [tuple(each.turns[0].prompt_ids) for each in done]
    for place, seed in enumerate(SEEDS):
        (first,) = set(firsts[place * EPISODES : (place + 1) * EPISODES])  # the episodes of a task start alike
        env = build_env(path, options)
        start = observe_reset(chance.reset(env, seed=seed, later=0), env)
        env.close()
        prompt = world_dialogue._tokenizer.decode(first)
        assert all(message.content in prompt for message in messages_of(start.said))
        assert all(f'"{tool["function"]["name"]}"' in prompt for tool in start.tools)
    if world != "TextArena of two":  # where every task begins with an empty board
        assert len(set(firsts)) == len(SEEDS)
