"""Clients that go away, come too late or talk in several voices at once: what of it becomes a turn."""

import asyncio
import json
from typing import Any

import pytest
from openai import AsyncOpenAI, AuthenticationError

from milepost.actors.agents.calls import EpisodeCalls
from milepost.actors.agents.endpoint import Endpoint
from milepost.actors.engine import Completion
from tests.actors.agents.agent_rig import SayingEngine, episode_calls, serving, text_of

HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


async def sent(url: str, key: str, **body: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which HELLO was asked, to read the answer from, or not to."""
    content = json.dumps(HELLO | body)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n{content}".encode())
    await writer.drain()
    return reader, writer


async def until(holds: Any) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


def test_a_client_that_goes_while_the_engine_answers_leaves_no_turn_and_its_place_to_the_next_one():
    class Slow(SayingEngine):
        held = True
        cancelled = 0

        async def generate(self, prompt_ids: list[int]) -> Completion:
            self.prompts.append(prompt_ids)
            try:
                while self.held:
                    await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            return await super().generate(prompt_ids)

    async def go() -> None:
        async with serving(calls) as (url, key), AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as client:
            _, writer = await sent(url, key)
            await until(lambda: engine.prompts)
            writer.transport.abort()
            await until(lambda: engine.cancelled)
            engine.held = False
            await client.chat.completions.create(**HELLO)  # type: ignore[call-overload]

    engine = Slow(lambda _: "hi")
    calls = episode_calls(engine, max_calls=1)
    asyncio.run(go())
    assert [(turn.lineage, turn.parent_lineage) for turn in calls.turns(0.0)] == [(0, None)]


def test_a_client_that_goes_in_the_middle_of_a_stream_has_made_its_call_and_a_repeated_one_begins_a_lineage():
    async def go() -> None:
        async with serving(calls) as (url, key), AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as client:
            reader, writer = await sent(url, key, stream=True)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.transport.abort()
            await client.chat.completions.create(**HELLO)  # type: ignore[call-overload]

    calls = episode_calls(SayingEngine(lambda _: "x" * 1_000_000))
    asyncio.run(go())
    assert [(turn.lineage, len(turn.response_ids)) for turn in calls.turns(0.0)] == [(0, 1_000_001), (1, 1_000_001)]


def test_after_its_episode_a_key_is_refused_and_no_other_episode_hears_of_it():
    async def go() -> list[EpisodeCalls]:
        endpoint, both = Endpoint(), [episode_calls(SayingEngine(str.upper)) for _ in range(2)]
        await endpoint.start()
        ended, other = (endpoint.open(calls) for calls in both)
        try:
            async with AsyncOpenAI(base_url=f"{endpoint.url}/v1", api_key=ended) as client:
                await client.chat.completions.create(**HELLO)  # type: ignore[call-overload]
                endpoint.close(ended)
                with pytest.raises(AuthenticationError, match="no episode under way has this key"):
                    await client.chat.completions.create(**HELLO)  # type: ignore[call-overload]
                client.api_key = other
                await client.chat.completions.create(**HELLO)  # type: ignore[call-overload]
        finally:
            await endpoint.stop()
        return both

    assert [calls.count for calls in asyncio.run(go())] == [1, 1]


def test_sub_agents_side_by_side_are_lineages_of_their_own_and_the_one_that_started_them_goes_on():
    async def ask(client: AsyncOpenAI, messages: list[Any], text: str) -> list[Any]:
        asked = [*messages, {"role": "user", "content": text}]
        reply = await client.chat.completions.create(model="m", messages=asked)
        return [*asked, {"role": "assistant", "content": reply.choices[0].message.content}]

    async def sub_agent(client: AsyncOpenAI, name: str) -> None:
        await ask(client, await ask(client, [], name), "more")

    async def go() -> None:
        async with serving(calls) as (url, key), AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as client:
            main = await ask(client, [], "main")
            await asyncio.gather(*(sub_agent(client, name) for name in ("one", "two", "three")))
            await ask(client, main, "go on")

    calls = episode_calls(SayingEngine(lambda prompt: f"({prompt[-4:]})"))
    asyncio.run(go())
    turns = calls.turns(1.0)
    by_lineage = [[turn for turn in turns if turn.lineage == k] for k in range(4)]
    assert [len(each) for each in by_lineage] == [2, 2, 2, 2]
    assert by_lineage[0] == [turns[0], turns[-1]]
    for first, second in by_lineage:
        seen = first.prompt_ids + first.response_ids
        assert second.prompt_ids[: len(seen)] == seen
    for first, second in by_lineage[1:]:
        assert first.parent_lineage is not None
        assert first.parent_lineage < first.lineage
        assert text_of(second.prompt_ids).endswith("user:more")
