"""Real clients of the three APIs against the endpoint: what they send is understood, what they get is what was said."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI, BadRequestError, InternalServerError

from milepost.actors.agents.calls import EpisodeCalls
from milepost.actors.engine import EngineError
from tests.actors.agents.agent_rig import SayingEngine, episode_calls, function_tool, serving, text_of

WEATHER = 'CALL weather {"x": 1}'


def say(prompt: str) -> str:
    """A tool call first, then an answer."""
    return "it rains" if "tool:" in prompt else WEATHER


def with_openai(calls: EpisodeCalls, use: Callable[[AsyncOpenAI], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        async with (
            serving(calls) as (url, key),
            AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client,
        ):
            return await use(client)

    return asyncio.run(go())


def with_anthropic(calls: EpisodeCalls, use: Callable[[AsyncAnthropic], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        async with serving(calls) as (url, key), AsyncAnthropic(base_url=url, api_key=key, max_retries=0) as client:
            return await use(client)

    return asyncio.run(go())


def continues(calls: EpisodeCalls) -> bool:
    """Whether the second prompt begins with the first one and the very tokens sampled for it."""
    first, second = calls.turns(1.0)
    seen = first.prompt_ids + first.response_ids
    return second.prompt_ids[: len(seen)] == seen and first.lineage == second.lineage == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_loop_over_chat_completions_is_two_turns_of_one_lineage(stream: bool):
    async def use(client: AsyncOpenAI) -> str:
        messages: list[Any] = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "weather?"}]
        for _ in range(2):
            asked: Any = {"model": "m", "messages": messages, "tools": [function_tool("weather")]}
            if stream:
                async with client.chat.completions.stream(**asked) as events:
                    reply = (await events.get_final_completion()).choices[0]
            else:
                reply = (await client.chat.completions.create(**asked)).choices[0]
            messages.append(reply.message.model_dump(exclude_none=True, exclude={"parsed"}))
            if reply.finish_reason != "tool_calls":
                return str(reply.message.content)
            (call,) = reply.message.tool_calls
            assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"x": 1})
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "rain"})
        return "no end"

    calls = episode_calls(SayingEngine(say))
    assert with_openai(calls, use) == "it rains"
    assert continues(calls)
    assert [turn.action for turn in calls.turns(1.0)] == ['weather {"x": 1}', "it rains"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_loop_over_responses_is_two_turns_of_one_lineage(stream: bool):
    tool = {"type": "function", **function_tool("weather")["function"], "strict": False}

    async def use(client: AsyncOpenAI) -> str:
        items: list[Any] = [{"role": "user", "content": "weather?"}]
        for _ in range(2):
            asked: Any = {"model": "m", "instructions": "be brief", "input": items, "tools": [tool]}
            if stream:
                async with client.responses.stream(**asked) as events:
                    reply = await events.get_final_response()
            else:
                reply = await client.responses.create(**asked)
            if reply.output_text:
                return str(reply.output_text)
            (call,) = reply.output
            items += [call.model_dump(exclude={"parsed_arguments"}, exclude_none=True)]
            items += [{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
        return "no end"

    calls = episode_calls(SayingEngine(say))
    assert with_openai(calls, use) == "it rains"
    assert continues(calls)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_loop_over_messages_is_two_turns_of_one_lineage(stream: bool):
    function = function_tool("weather")["function"]
    tool = {"name": function["name"], "description": "d", "input_schema": function["parameters"]}

    async def use(client: AsyncAnthropic) -> str:
        messages: list[Any] = [{"role": "user", "content": "weather?"}]
        for _ in range(2):
            asked: Any = {"model": "m", "max_tokens": 50, "system": "be brief", "messages": messages, "tools": [tool]}
            if stream:
                async with client.messages.stream(**asked) as events:
                    reply = await events.get_final_message()
            else:
                reply = await client.messages.create(**asked)
            (block,) = reply.content
            if block.type == "text":
                return str(block.text)
            assert (reply.stop_reason, block.input) == ("tool_use", {"x": 1})
            result = {"type": "tool_result", "tool_use_id": block.id, "content": "rain"}
            messages += [{"role": "assistant", "content": reply.content}, {"role": "user", "content": [result]}]
        return "no end"

    calls = episode_calls(SayingEngine(say))
    assert with_anthropic(calls, use) == "it rains"
    assert continues(calls)


def test_the_state_of_a_call_is_what_the_program_names_by_header_or_field():
    async def use(client: AsyncOpenAI) -> None:
        asked: Any = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
        await client.chat.completions.create(**asked, extra_headers={"x-milepost-anchor": "hall"})
        await client.chat.completions.create(**asked, metadata={"milepost_anchor": "cellar"})

    calls = episode_calls(SayingEngine(say))
    with_openai(calls, use)
    assert [(turn.anchor, turn.next_anchor) for turn in calls.turns(0.5)] == [
        ("hall", "cellar"),
        ("cellar", "end of the episode"),
    ]
    assert [turn.reward for turn in calls.turns(0.5)] == [0.0, 0.5]


@pytest.mark.parametrize(
    ("field", "shown"),
    [
        ({"n": 2}, "n = 2 is not served"),
        ({"tool_choice": "required"}, "tool_choice = 'required' is not served"),
        ({"stop": ["\n"]}, "stop"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"metadata": {"milepost_anchor": 7}}, "milepost_anchor must be text"),
        ({"messages": []}, "messages is empty"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls = False is not served"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, r"messages\[0\].role is 'narrator'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            r"messages\[0\].content\[0\] has type 'image_url'",
        ),
    ],
)
def test_what_cannot_be_served_as_asked_is_refused_by_name(field: dict[str, Any], shown: str):
    async def use(client: AsyncOpenAI) -> None:
        asked: Any = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | field
        await client.chat.completions.create(**asked)

    calls = episode_calls(SayingEngine(say))
    with pytest.raises(BadRequestError, match=shown):
        with_openai(calls, use)
    assert calls.count == 0


@pytest.mark.parametrize(
    ("field", "shown"),
    [
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {}}}}, "text.format"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, r"input\[0\] refers to an item by its id"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ],
)
def test_what_the_responses_api_cannot_serve_is_refused_by_name(field: dict[str, Any], shown: str):
    async def use(client: AsyncOpenAI) -> None:
        await client.responses.create(**{"model": "m", "input": "x"} | field)  # type: ignore[call-overload]

    with pytest.raises(BadRequestError, match=shown):
        with_openai(episode_calls(SayingEngine(say)), use)


def test_what_the_agents_sdk_says_of_a_response_by_default_is_no_reason_to_refuse_it():
    async def use(client: AsyncOpenAI) -> str:
        said: Any = {"text": {"verbosity": "low"}, "reasoning": {"effort": "low"}, "store": False, "include": []}
        return str((await client.responses.create(model="m", input="x", **said)).output_text)

    assert with_openai(episode_calls(SayingEngine(say)), use) == WEATHER


@pytest.mark.parametrize("wanted", [False, True])
def test_a_stream_ends_with_the_usage_if_it_was_asked_for(wanted: bool):
    async def use(client: AsyncOpenAI) -> list[tuple[int, int | None]]:
        asked: Any = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
        options = {"stream_options": {"include_usage": True}} if wanted else {}
        chunks = [chunk async for chunk in await client.chat.completions.create(**asked, **options)]
        return [(len(chunk.choices), chunk.usage and chunk.usage.total_tokens) for chunk in chunks]

    total = len("user:x") + 2 + len(WEATHER) + 1
    expected = [(1, None), (1, None), (0, total)] if wanted else [(1, None), (1, None)]
    assert with_openai(episode_calls(SayingEngine(say)), use) == expected


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"max_calls": 1}, "turn_limit"),
        ({"max_tokens": 1}, "token_limit"),
        ({"max_prompt_tokens": 9}, "context_length_exceeded"),
    ],
)
def test_a_call_beyond_a_limit_of_the_episode_is_refused_with_its_name(limits: dict[str, int], code: str):
    async def use(client: AsyncOpenAI) -> None:
        for text in ("x", "longer"):
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])

    calls = episode_calls(SayingEngine(say), **limits)
    with pytest.raises(BadRequestError) as refusal:
        with_openai(calls, use)
    assert refusal.value.code == code
    assert calls.cut_by == refusal.value.code
    assert calls.count == 1


def test_an_engine_that_fails_is_said_to_be_unavailable_and_its_call_is_none_of_the_episode():
    class Failing(SayingEngine):
        async def generate(self, _prompt_ids: list[int]) -> Any:
            raise EngineError("no engine is in rotation")

    async def use(client: AsyncOpenAI) -> None:
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])

    calls = episode_calls(Failing(say))
    with pytest.raises(InternalServerError, match="no engine is in rotation"):
        with_openai(calls, use)
    assert (calls.count, calls.cut_by) == (0, "")


def test_without_the_key_of_an_episode_under_way_nothing_is_answered():
    async def go() -> list[int]:
        async with serving(episode_calls(SayingEngine(say))) as (url, key), aiohttp.ClientSession() as session:
            statuses = []
            for given, body in (("mp-other", b"{}"), (key, b"no json"), (key, b"[1]")):
                head = {"Authorization": f"Bearer {given}"}
                async with session.post(f"{url}/v1/chat/completions", data=body, headers=head) as response:
                    statuses.append(response.status)
            async with session.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}) as response:
                assert [model["id"] for model in (await response.json())["data"]] == ["policy"]
            return statuses

    assert asyncio.run(go()) == [401, 400, 400]


def test_calls_at_the_same_time_are_turns_in_the_order_in_which_they_began():
    async def use(client: AsyncOpenAI) -> None:
        asked = [client.chat.completions.create(model="m", messages=[{"role": "user", "content": t}]) for t in "abc"]
        await asyncio.gather(*asked)

    calls = episode_calls(SayingEngine(lambda prompt: prompt))
    with_openai(calls, use)
    turns = calls.turns(1.0)
    assert sorted(text_of(turn.prompt_ids) for turn in turns) == ["user:a", "user:b", "user:c"]
    assert [turn.next_anchor for turn in turns[:2]] == [turn.anchor for turn in turns[1:]]
    assert sorted(turn.lineage for turn in turns) == [0, 1, 2]
