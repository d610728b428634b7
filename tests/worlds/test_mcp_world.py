"""A real MCP server by Streamable HTTP on loopback, shared by 20 episodes at a time."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from milepost.envs.contract import build_env, observe_reset, observe_step
from milepost.envs.messages import AssistantMessage, ToolCall
from tests.worlds.mcp_worlds import Sums, server
from tests.worlds.served_worlds import EPISODES, serving

pytestmark = [pytest.mark.services, pytest.mark.timeout(240)]


def test_20_episodes_share_a_server_by_http_and_a_sound_player_solves_them_all() -> None:
    with serving(server.streamable_http_app()) as (url, _):

        def episode(seed: int) -> list[float]:
            env = build_env(Sums, {"server": f"{url}/mcp"})
            try:
                reset = observe_reset(env.reset(seed=seed), env)
                a, b = re.findall(r"\d+", reset.observation)
                call = ToolCall(id="call00000", name="add", arguments={"a": int(a), "b": int(b)})
                told = observe_step(env.step(AssistantMessage(tool_calls=(call,))), "x")
                assert told.observation == str(int(a) + int(b))
                done = observe_step(env.step(AssistantMessage(content=told.observation)), "x")
                return [told.reward, done.reward, float(done.success is True)]
            finally:
                env.close()

        with ThreadPoolExecutor(EPISODES) as threads:
            played = list(threads.map(episode, range(EPISODES)))
    assert played == [[0.0, 1.0, 1.0]] * EPISODES


def test_a_server_that_is_not_there_is_named() -> None:
    env = build_env(Sums, {"server": "http://127.0.0.1:9/mcp"})
    with pytest.raises(ConnectionError, match=r"MCP server http://127\.0\.0\.1:9/mcp: .*connect"):
        env.reset(seed=0)
    env.close()
