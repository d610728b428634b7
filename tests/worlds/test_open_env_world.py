"""A real OpenEnv server on loopback, played through the adapter; what needs no server is in the suite."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from milepost.envs.contract import EnvPathError, build_env, observe_reset, observe_step
from milepost.envs.dialogue import Dialogue
from tests.actors.episode_rig import failure, trajectory
from tests.actors.running_engine import RunningEngine
from tests.worlds.served_worlds import EPISODES, by_script, episodes, prompts, serving

OPEN_ENV = "milepost.envs.adapters.open_env:OpenEnv"
ACTION = "tests.worlds.open_env_server:Guess"
NOWHERE = "http://127.0.0.1:9"


def with_server(test: Callable[..., None]) -> Callable[..., None]:
    needs = pytest.mark.skipif(find_spec("openenv") is None, reason="needs the packages of make worlds")
    return pytest.mark.sweep(needs(test))


@pytest.fixture
def server() -> Iterator[tuple[str, Callable[[], None]]]:
    from tests.worlds import open_env_server

    with serving(open_env_server.app) as (url, end):
        yield url, end
    until = time.monotonic() + 10
    while open_env_server.OPEN and time.monotonic() < until:
        time.sleep(0.05)
    assert not open_env_server.OPEN, "a session is left open"


def middle(text: str) -> str:
    """The middle of the range that the policy read last."""
    low, high = re.findall(r"from (\d) to (\d)", text)[-1]
    return f'{{"guess": {(int(low) + int(high)) // 2}}}'


@with_server
def test_the_real_engine_plays_20_episodes_and_each_ends_with_an_outcome(
    server: Any, engine: RunningEngine, dialogue: Dialogue
) -> None:
    options = {"base_url": server[0], "action": ACTION, "text": "text"}
    played = [
        trajectory(each)
        for each in engine.run(episodes(dialogue, OPEN_ENV, options, engine=engine.engine, max_turns=2), timeout_s=300)
    ]
    assert len(played) == EPISODES
    for each in played:
        assert each.outcome in ("success", "truncated")
        first, *later = prompts(dialogue, each)
        assert "A number from 1 to 7." in first
        for turn, text in zip(each.turns, later, strict=False):
            assert ("Nothing was done: " in text) == (turn.action is None)


@with_server
def test_a_sound_player_wins_all_20_and_one_that_always_says_8_none(server: Any, dialogue: Dialogue) -> None:
    options = {"base_url": server[0], "action": ACTION, "text": "text"}
    for say, outcome, reward in ((middle, "success", 1.0), (lambda _: '{"guess": 8}', "truncated", 0.0)):
        engine = by_script(dialogue, say)
        played = [trajectory(each) for each in asyncio.run(episodes(dialogue, OPEN_ENV, options, engine=engine))]
        assert [(each.outcome, each.reward) for each in played] == [(outcome, reward)] * EPISODES
    assert {turn.anchor for each in played for turn in each.turns} == {"A number from 1 to 7."}
    assert played[0].turns[0].action == '{"guess": 8, "metadata": {}}'


@with_server
def test_a_field_gets_the_text_and_what_the_server_does_not_take_is_told_to_the_policy(server: Any) -> None:
    env = build_env(OPEN_ENV, {"base_url": server[0], "action": "guess"})
    try:
        reset = observe_reset(env.reset(seed=1), env)
        assert reset.observation == '{"metadata": {}, "text": "A number from 1 to 7."}'
        step = observe_step(env.step("up"), "up")
        assert (step.observation, step.action) == ("Nothing was done: the environment takes no such action.", None)
        assert step.anchor == reset.anchor
        assert observe_step(env.step(" 3 "), "3").action == '{"guess": "3"}'
    finally:
        env.close()


@with_server
@pytest.mark.parametrize(
    ("guess", "message"), [(99, "timed out in 1.0s"), (98, r"broken on purpose \(EXECUTION_ERROR\)")]
)
def test_a_server_that_hangs_or_fails_is_a_failure_and_no_reward(
    server: Any, dialogue: Dialogue, guess: int, message: str
) -> None:
    options = {"base_url": server[0], "action": ACTION, "timeout_s": 1.0}
    engine = by_script(dialogue, lambda _: f'{{"guess": {guess}}}')
    (failed,) = asyncio.run(episodes(dialogue, OPEN_ENV, options, engine=engine, count=1))
    assert failure(failed).error == "ConnectionError"
    assert re.fullmatch(f"OpenEnv server {server[0]}: {message}", failure(failed).message)


@with_server
def test_a_server_that_goes_away_in_an_episode_is_a_failure_that_names_it(server: Any, dialogue: Dialogue) -> None:
    url, end = server

    def ends_the_server(_: str) -> str:
        end()
        return '{"guess": 1}'

    options = {"base_url": url, "action": ACTION}
    engine = by_script(dialogue, ends_the_server)
    (failed,) = asyncio.run(episodes(dialogue, OPEN_ENV, options, engine=engine, count=1))
    assert failure(failed).message.startswith(f"OpenEnv server {url}: ")


def test_a_server_that_is_not_there_is_a_failure_that_names_it(dialogue: Dialogue) -> None:
    options = {"base_url": NOWHERE, "action": "guess"}
    engine = by_script(dialogue, lambda _: "1")
    (failed,) = asyncio.run(episodes(dialogue, OPEN_ENV, options, engine=engine, count=1))
    assert (failure(failed).boundary, failure(failed).error) == ("env", "ConnectionError")
    assert failure(failed).message.startswith(f"OpenEnv server {NOWHERE}: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "127.0.0.1:9", "action": "guess"}, "base_url = '127.0.0.1:9' is no address such as http://"),
        ({"base_url": NOWHERE, "action": "no.such:Guess"}, "no module named 'no'"),
        ({"base_url": NOWHERE, "action": f"{__name__}:NOWHERE"}, "neither a pydantic class nor a function"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_reason(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvPathError, match=re.escape(message)):
        build_env(OPEN_ENV, options)


def test_a_missing_package_is_told_by_the_name_of_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets.sync.client", None)
    with pytest.raises(EnvPathError, match=re.escape("needs the extra 'openenv': pip install 'milepost[openenv]'")):
        build_env(OPEN_ENV, {"base_url": NOWHERE, "action": "guess"})
