"""An endpoint whose policy says what a test tells it: one token per character, one for each end of a message."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from milepost.actors.agents.calls import EpisodeCalls
from milepost.actors.agents.endpoint import Endpoint
from milepost.actors.agents.lineages import ChatMessage, Lineages
from milepost.actors.engine import Completion
from milepost.envs.messages import AssistantMessage, Exchange, Said, ToolCall, ToolSchema, messages_of, tool_names
from milepost.envs.types import VersionSpan

END, ANSWER = 0, 1
_TEXT = 2


def ids_of(text: str) -> list[int]:
    return [ord(character) + _TEXT for character in text]


def text_of(ids: Sequence[int]) -> str:
    return "".join(chr(i - _TEXT) for i in ids if i >= _TEXT)


class Letters:
    """A layout whose ids can be read: `role:content` and END for each message, then ANSWER."""

    appends = True

    def __init__(self, tools: Sequence[ToolSchema] = ()) -> None:
        self.tools = tools

    def with_tools(self, tools: Sequence[ToolSchema]) -> "Letters":
        return Letters(tools)

    def conversation(self, messages: Sequence[ChatMessage], exchanges: Sequence[Exchange] = ()) -> list[int]:
        assert not exchanges
        shown = [*({"role": "tools", "content": name} for name in tool_names(self.tools)), *messages]
        return [i for message in shown for i in (*ids_of(_line(message)), END)] + [ANSWER]

    def continuation(self, said: Said, closed: bool) -> list[int]:
        return [END] * (not closed) + Letters().conversation([msgspec.to_builtins(m) for m in messages_of(said)])


def _line(message: ChatMessage) -> str:
    calls = "".join(call["function"]["name"] for call in message.get("tool_calls", []))
    return f"{message['role']}:{message['content']}{calls}"


def read(completion: Completion, tools: Sequence[Any], calls_before: int) -> tuple[AssistantMessage, bool]:
    """`CALL name {arguments}` is a tool call; one that is no JSON is not valid."""
    text = text_of(completion.response_ids)
    if not text.startswith("CALL ") or not tools:
        return AssistantMessage(content=text), True
    _, name, arguments = text.split(" ", 2)
    try:
        call = ToolCall(id=f"call{calls_before}", name=name, arguments=json.loads(arguments))
    except ValueError:
        return AssistantMessage(content=text), False
    return AssistantMessage(tool_calls=(call,)), True


class SayingEngine:
    """Answers a prompt, given as text, with what `say` says; every token at log-prob -0.5 under version 3."""

    def __init__(self, say: Callable[[str], str]) -> None:
        self.say = say
        self.prompts: list[list[int]] = []

    async def generate(self, prompt_ids: list[int]) -> Completion:
        self.prompts.append(prompt_ids)
        await asyncio.sleep(0)
        ids = [*ids_of(self.say(text_of(prompt_ids))), END]
        spans = [VersionSpan(version=3, start=0, end=len(ids))]
        return Completion(response_ids=ids, logprobs=[-0.5] * len(ids), versions=spans, stopped=True)


def episode_calls(engine: Any, **limits: int) -> EpisodeCalls:
    given = {"max_calls": 100, "max_prompt_tokens": 100_000, "max_tokens": 0} | limits
    return EpisodeCalls(engine=engine, lineages=Lineages(Letters()), read=read, decode=text_of, **given)


@asynccontextmanager
async def serving(calls: EpisodeCalls) -> AsyncIterator[tuple[str, str]]:
    """The URL and the key of an endpoint for one episode."""
    endpoint = Endpoint()
    await endpoint.start()
    key = endpoint.open(calls)
    try:
        yield endpoint.url, key
    finally:
        endpoint.close(key)
        await endpoint.stop()


def function_tool(name: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": schema}}
