"""All calls of an episode are made on one thread of its own, and no observation holds up the loop."""

import asyncio
import threading
import time

import pytest

from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Failure, Trajectory
from tests.actors.episode_rig import HERE as RIG
from tests.actors.episode_rig import failure, play, resources, task, trajectory
from tests.actors.thread_envs import CLOSED, IN_A_CALL

HERE = "tests.actors.thread_envs"


def many(dialogue: Dialogue, env: str, episodes: int, **limits: float) -> list[Trajectory | Failure]:
    async def go() -> list[Trajectory | Failure]:
        async with resources(dialogue, max_turns=20, max_prompt_tokens=10_000, **limits) as here:
            return await asyncio.gather(*(play(here, task(f"{HERE}:{env}"), index) for index in range(episodes)))

    return asyncio.run(go())


def left_alive() -> list[threading.Thread]:
    """Threads of episodes that do not end."""
    left = [thread for thread in threading.enumerate() if thread.name == "episode"]
    for thread in left:
        thread.join(10)
    return [thread for thread in left if thread.is_alive()]


@pytest.mark.parametrize("env", ["Database", "Counts"])
def test_what_belongs_to_a_thread_is_found_there_in_every_call(env: str, dialogue: Dialogue) -> None:
    CLOSED.clear()
    outcomes = [trajectory(result).outcome for result in many(dialogue, env, 40)]
    assert outcomes == ["success"] * 40
    assert not left_alive()
    if env == "Database":
        assert len(CLOSED) == len(set(CLOSED)) == 40


def test_threads_end_with_their_episodes_and_calls_side_by_side_are_bounded(dialogue: Dialogue) -> None:
    IN_A_CALL.clear()
    many(dialogue, "Slow", 30, threads=3)
    assert IN_A_CALL["most"] == 3
    assert not left_alive()


class LaidOutSlowly:
    """Lays out as `dialogue` does, in half a second, as it would megabytes."""

    appends = True

    def __init__(self, dialogue: Dialogue) -> None:
        self.dialogue = dialogue

    def opening(self, observation: str) -> list[int]:
        time.sleep(0.5)
        return self.dialogue.opening(observation)

    def continuation(self, observation: str, closed: bool) -> list[int]:
        time.sleep(0.5)
        return self.dialogue.continuation(observation, closed)


def test_the_loop_turns_while_a_long_observation_is_laid_out(dialogue: Dialogue) -> None:
    async def go() -> float:
        longest, last = 0.0, time.monotonic()
        async with resources(dialogue) as here:
            here.dialogue = LaidOutSlowly(dialogue)
            playing = asyncio.create_task(play(here, task(target=1)))
            while not playing.done():
                await asyncio.sleep(0.005)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
            trajectory(playing.result())
        return longest

    assert asyncio.run(go()) < 0.4  # the layout takes half a second, so the loop did not wait for it


def test_an_observation_beyond_the_bound_is_its_environments_failure(dialogue: Dialogue) -> None:
    async def go() -> Trajectory | Failure:
        async with resources(dialogue, max_observation_chars=5_000_000) as here:
            return await play(here, task(f"{RIG}:Lengthy", words=2_500_001))

    found = failure(asyncio.run(go()))
    assert (found.boundary, found.error) == ("env", "ContractError")
    assert "shorten it, or raise actors.max_observation_chars = 5000000" in found.message
