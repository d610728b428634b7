"""Programs of three packages over one desk, as each package's documents would write them."""

import asyncio
import importlib
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from transformers import AutoTokenizer

from examples.agent.desk import RULES, TOOLS, Desk
from milepost.actors.agents.agent_episode import run_agent_episode
from milepost.actors.agents.calls import EpisodeCalls
from milepost.actors.agents.program import Access, CommandProgram
from milepost.envs.dialogue import Dialogue
from milepost.envs.messages import AssistantMessage, Message, ToolCall
from milepost.envs.types import Task, Trajectory
from tests.actors.agents.agent_rig import SayingEngine, episode_calls, serving, text_of
from tests.actors.agents.clerk import Clerk
from tests.actors.agents.exact_tokens import Recorder, hosting
from tests.actors.running_engine import RunningEngine
from tests.actors.tools.taught_policy import by_heart, taught, template

PROGRAMS = ["examples.agent.desk", "examples.agent.agents_sdk", "examples.agent.langgraph_desk"]
TASK = {"seed": 3, "options": {"orders": 3}}
EPISODES = 6


def play(program: str, say: Any, **limits: int) -> tuple[dict[str, Any], EpisodeCalls]:
    async def go() -> Any:
        async with serving(calls) as (url, key), AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as client:
            return await importlib.import_module(program).run(TASK, client)

    calls = episode_calls(SayingEngine(say), **limits)
    return asyncio.run(go()), calls


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_that_looks_everything_up_is_one_lineage_that_shows_what_its_tools_found(program: str):
    desk = Desk(3, 3)
    result, calls = play(program, Clerk(desk, str(desk.sum)))
    assert result == {"reward": 1.0, "success": True}
    turns = calls.turns(1.0)
    assert [turn.action for turn in turns] == [
        'orders_of {"customer": "Bo"}',
        'price_of {"order": 1}',
        'price_of {"order": 2}',
        "124",
    ]
    assert {turn.lineage for turn in turns} == {0}
    for before, after in pairwise(turns):
        seen = before.prompt_ids + before.response_ids
        assert after.prompt_ids[: len(seen)] == seen
    assert [text_of(turn.prompt_ids).rsplit("tool:", 1)[1] for turn in turns[1:]] == ["[1, 2]", "[76]", "[48]"]


@pytest.mark.parametrize("program", PROGRAMS[1:])
@pytest.mark.parametrize("said", ['CALL steal {"all": true}', 'CALL price_of {"order": "none"}'])
def test_a_policy_that_calls_what_is_not_there_earns_nothing_and_breaks_no_program(program: str, said: str):
    result, calls = play(program, lambda _: said)
    assert result == {"reward": 0.0, "success": False}
    assert {turn.lineage for turn in calls.turns(0.0)} == {0}


@pytest.mark.parametrize("program", PROGRAMS[1:])
def test_a_program_of_a_package_plays_as_a_command_too(program: str):
    async def go() -> object:
        async with serving(calls) as (url, key):
            return await CommandProgram((sys.executable, "-m", program)).play(TASK, Access(url=url, key=key))

    desk = Desk(3, 3)
    calls = episode_calls(SayingEngine(Clerk(desk, str(desk.sum))))
    assert asyncio.run(go()) == {"reward": 1.0, "success": True}
    assert {turn.lineage for turn in calls.turns(1.0)} == {0}


@pytest.mark.services
@pytest.mark.timeout(300)
def test_what_three_packages_make_of_a_conversation_is_trained_on_as_the_engine_sampled_it(
    engine: RunningEngine, tiny_policy: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    tokenizer.chat_template = template("tool.function.name + ' '")  # as a whole they leave no room for a conversation
    ids, learnt = conversation(Dialogue(tokenizer), desk := Desk(3, 1))

    async def play_all(recorder: Recorder, program: str) -> list[Trajectory]:
        task = Task(env=f"{program}:run", seed=3, split="train", options={"orders": 1})
        async with hosting(recorder, tokenizer, task.env) as (host, resources):
            some = [run_agent_episode(host, resources, task=task, group_id="g", index=k) for k in range(EPISODES)]
            # The Agents SDK raises where an answer is cut: such an episode is a failure, which is not trained on.
            return [each for each in await asyncio.gather(*some) if isinstance(each, Trajectory)]

    with taught(engine, tiny_policy, ids, learnt, tmp_path):
        for program in PROGRAMS:
            recorder = Recorder(engine.engine)
            played = engine.run(play_all(recorder, program), timeout_s=240)
            for each in played:
                recorder.compare(each)
            assert recorder.seen["lineages"] == recorder.seen["samples"] == len(played)
            solved = [each for each in played if each.outcome == "success"]
            assert len(solved) >= EPISODES / 2, program  # about 130 tokens, of which each could be another one
            for each in solved:
                assert [turn.action for turn in each.turns][1:] == ['price_of {"order": 1}', str(desk.sum)]


def conversation(layout: Dialogue, desk: Desk) -> tuple[list[int], list[bool]]:
    """The ids of a conversation that answers the question of `desk`, and which of them are learnt."""
    said = [Message(role="system", content=RULES), Message(role="user", content=desk.question)]
    exchanges: list[tuple[AssistantMessage, list[Message]]] = []
    for number, (name, arguments) in enumerate(
        [("orders_of", {"customer": desk.customer}), ("price_of", {"order": 1})]
    ):
        call = ToolCall(id=f"call{number:05d}", name=name, arguments=arguments)
        found = Message(role="tool", content=desk.call(name, json.dumps(arguments)), tool_call_id=call.id)
        exchanges.append((AssistantMessage(tool_calls=(call,)), [found]))
    exchanges.append((AssistantMessage(content=str(desk.sum)), []))
    return by_heart(layout.with_tools(TOOLS), said, exchanges)
