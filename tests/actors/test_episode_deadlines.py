"""Calls that hang or wait, episodes that take too long, and cancellation: nothing is waited for without an end."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest

from milepost.actors.episode_thread import EpisodeThread
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Failure
from tests.actors.episode_rig import HERE, WaitingEngine, failure, hung_calls, play, resources, task, trajectory


@pytest.mark.parametrize("where", ["Reset", "Step"])
def test_a_call_that_hangs_is_counted_while_it_still_hangs(where: str, dialogue: Dialogue) -> None:
    async def one() -> Failure:
        async with resources(dialogue, env_timeout_s=1) as here:
            found = failure(await play(here, task(f"{HERE}:HangsIn{where}")))
            assert (here.hung, hung_calls.now) == (1, 1)
            return found

    found = asyncio.run(one())
    assert (found.boundary, found.error) == ("env", "TimeoutError")
    assert found.message == f"{where.lower()} did not return within actors.env_timeout_s = 1"
    assert hung_calls.now == 0


@pytest.mark.parametrize("returns", [True, False])
def test_a_call_cut_by_the_episodes_deadline_is_counted_only_if_it_outlasts_its_own(
    returns: bool, dialogue: Dialogue
) -> None:
    async def one() -> int:
        async with resources(dialogue, env_timeout_s=1, episode_timeout_s=0.3) as here:
            found = failure(await play(here, task(f"{HERE}:HangsInStep")))
            assert (found.boundary, here.hung, hung_calls.now) == ("infra", 0, 1)
            if returns:
                hung_calls.release.set()
            await asyncio.sleep(1.5)
            return here.hung

    assert asyncio.run(one()) == (0 if returns else 1)


def test_a_close_that_hangs_is_counted_though_the_episode_is_good(dialogue: Dialogue) -> None:
    async def one() -> None:
        async with resources(dialogue, env_timeout_s=1) as here:
            assert trajectory(await play(here, task(f"{HERE}:HangsInClose"))).outcome == "success"
            async with asyncio.timeout(10):
                while not here.hung:
                    await asyncio.sleep(0.01)
            assert hung_calls.now == 1

    asyncio.run(one())


def test_a_call_that_waits_for_a_thread_is_not_taken_for_a_hanging_one(dialogue: Dialogue) -> None:
    async def one() -> None:
        async with resources(dialogue, threads=1, env_timeout_s=0.2, episode_timeout_s=0.6) as here:
            hanging = asyncio.create_task(play(here, task(f"{HERE}:HangsInReset")))
            while not hung_calls.now:
                await asyncio.sleep(0.001)
            waiting = failure(await play(here, task()))
            assert failure(await hanging).boundary == "env"
            assert waiting.boundary == "infra"
            assert waiting.message == (
                "episode longer than actors.episode_timeout_s = 0.6; it waited for a thread for reset"
            )
            assert here.hung == 1
            hung_calls.release.set()
            here.limits = replace(here.limits, env_timeout_s=5, episode_timeout_s=30)
            assert trajectory(await play(here, task())).outcome == "success"  # nothing is left in the queue

    asyncio.run(one())


def test_an_episode_past_its_deadline_is_an_infra_failure_that_says_what_it_waited_for(dialogue: Dialogue) -> None:
    async def one() -> Failure:
        async with resources(dialogue, engine=WaitingEngine(dialogue, asyncio.Event()), episode_timeout_s=1) as here:
            found = failure(await play(here, task()))
            assert here.hung == 0
            return found

    found = asyncio.run(one())
    assert (found.boundary, found.error) == ("infra", "TimeoutError")
    assert found.message == "episode longer than actors.episode_timeout_s = 1; it waited for the engine"


def test_cancellation_passes_through(dialogue: Dialogue) -> None:
    async def one() -> None:
        async with resources(dialogue, engine=(engine := WaitingEngine(dialogue, asyncio.Event()))) as here:
            playing = asyncio.create_task(play(here, task()))
            await engine.asked.wait()
            playing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await playing

    asyncio.run(one())


def inline(_: EpisodeThread, call: Callable[[], Any], gate: object = None) -> Future[Any]:
    """Runs a call where it is submitted, so that its end falls on a known turn of the event loop."""
    assert gate is None or isinstance(gate, threading.Semaphore)
    done: Future[Any] = Future()
    done.set_result(call())
    return done


@pytest.mark.parametrize("loop_turns", range(12))
def test_cancellation_is_not_lost_when_a_call_ends_at_the_same_moment(
    loop_turns: int, dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EpisodeThread, "submit", inline)

    async def one() -> None:
        async with resources(dialogue, engine=WaitingEngine(dialogue, asyncio.Event())) as here:
            playing = asyncio.create_task(play(here, task()))
            for _ in range(loop_turns):
                await asyncio.sleep(0)
            playing.cancel()
            await asyncio.wait([playing], timeout=1)
            assert playing.cancelled()

    asyncio.run(one())
