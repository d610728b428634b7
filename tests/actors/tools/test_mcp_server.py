"""A real MCP server by Streamable HTTP on loopback, shared by 20 episodes at a time, of a script and of the engine."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from milepost.envs.contract import build_env, observe_reset, observe_step
from milepost.envs.dialogue import Dialogue
from milepost.envs.messages import AssistantMessage, Message, ToolCall
from milepost.envs.types import Failure, Trajectory
from tests.actors.episode_rig import play, resources, task, trajectory
from tests.actors.running_engine import RunningEngine
from tests.actors.tools.mcp_sums import Sums, server
from tests.actors.tools.taught_policy import by_heart, taught, template
from tests.worlds.served_worlds import EPISODES, serving

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]
SUMS = "tests.actors.tools.mcp_sums:Sums"


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


def conversation(layout: Dialogue, url: str) -> tuple[list[int], list[bool]]:
    """The ids of a sum that is solved with the server's tool, and which of them are learnt."""
    env = build_env(Sums, {"server": url})
    try:
        reset = observe_reset(env.reset(seed=0), env)
    finally:
        env.close()
    a, b = map(int, re.findall(r"\d+", reset.observation))
    call = ToolCall(id="call00000", name="add", arguments={"a": a, "b": b})
    result = [Message(role="tool", name="add", content=str(a + b), tool_call_id="call00000")]
    exchanges = [(AssistantMessage(tool_calls=(call,)), result), (AssistantMessage(content=str(a + b)), [])]
    return by_heart(layout.with_tools(reset.tools), reset.said, exchanges)


def test_the_real_engine_plays_20_episodes_with_the_tools_of_a_server(
    engine: RunningEngine, tiny_policy: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    tokenizer.chat_template = template("tool.function.name")
    layout = Dialogue(tokenizer)

    async def play_all(sum_: Any) -> list[Trajectory | Failure]:
        limits = {"max_prompt_tokens": 400, "env_timeout_s": 60, "episode_timeout_s": 240}
        async with resources(layout, engine=engine.engine, **limits) as here:
            return list(await asyncio.gather(*(play(here, sum_, index) for index in range(EPISODES))))

    with serving(server.streamable_http_app()) as (url, _):
        ids, learnt = conversation(layout, f"{url}/mcp")
        with taught(engine, tiny_policy, ids, learnt, tmp_path):
            done = engine.run(play_all(task(SUMS, server=f"{url}/mcp")), timeout_s=400)
    played = [trajectory(each) for each in done]
    assert len(played) == EPISODES
    solved = [each for each in played if each.outcome == "success" and (each.turns[0].action or "").startswith("add {")]
    assert len(solved) >= EPISODES / 2, "sampled at 0.8, where each token could be another one"
    for each in solved:
        assert "add" in tokenizer.decode(each.turns[0].prompt_ids)
        assert [turn.reward for turn in each.turns] == [0.0, 1.0]


def test_a_server_that_is_not_there_is_named() -> None:
    env = build_env(Sums, {"server": "http://127.0.0.1:9/mcp"})
    with pytest.raises(ConnectionError, match=r"MCP server http://127\.0\.0\.1:9/mcp: .*connect"):
        env.reset(seed=0)
    env.close()
