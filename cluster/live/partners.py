"""Who answers in place of an engine of ours: a person at the terminal, or a model behind an OpenAI-style server."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from milepost.actors.agents.lineages import ChatMessage
from milepost.cluster.base.exits import ConfigError, DependencyLost
from milepost.cluster.live.terminal import Terminal
from milepost.cluster.live.view import ANSWER_BAR
from milepost.envs.messages import AssistantMessage, ToolCall, ToolSchema
from milepost.envs.plain_values import ContractError, plain_object

if TYPE_CHECKING:
    from openai import AsyncOpenAI  # heavy: where a server answers

_HOW_TO_CALL = 'call a tool as {"name": "...", "arguments": {...}}; anything else is your answer'


class Partner(Protocol):
    """Answers a conversation."""

    async def answer(self, messages: Sequence[ChatMessage], tools: Sequence[ToolSchema]) -> AssistantMessage:
        """What it says to `messages`."""
        ...


class Human:
    """Types each answer as one line; a call of a tool as JSON."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._calls = 0
        self._told = False

    async def answer(self, messages: Sequence[ChatMessage], tools: Sequence[ToolSchema]) -> AssistantMessage:
        """The next line that can be read. Raises Left."""
        assert messages
        if tools and not self._told:
            self._told = True
            self._terminal.out.write(f"{_HOW_TO_CALL}\n")
        while True:
            line = await self._terminal.ask(f"\n{ANSWER_BAR} " if sys.stdin.isatty() else "")
            try:
                return self._read(line) if tools else AssistantMessage(content=line)
            except (ValueError, RecursionError) as error:
                self._terminal.out.write(f"that is no call: {error}; {_HOW_TO_CALL}\n")

    def _read(self, line: str) -> AssistantMessage:
        if not line.lstrip().startswith("{"):
            return AssistantMessage(content=line)
        call = msgspec.convert({"arguments": {}} | plain_object(json.loads(line), "the call"), _Call)
        self._calls += 1
        arguments = plain_object(call.arguments, "arguments")
        return AssistantMessage(
            tool_calls=(ToolCall(id=f"call{self._calls:05d}", name=call.name, arguments=arguments),)
        )


class _Call(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    arguments: dict[str, Any]


class Server:
    """A model behind an OpenAI-compatible server, which samples as that server does."""

    def __init__(self, url: str, model: str) -> None:
        """`model` is the name to ask for; "" takes the first one that the server lists."""
        self._url = url
        self._model = model
        self._client: AsyncOpenAI | None = None

    async def answer(self, messages: Sequence[ChatMessage], tools: Sequence[ToolSchema]) -> AssistantMessage:
        """One completion. Raises ConfigError, or DependencyLost where the server does not answer."""
        import openai  # heavy: only where a server answers

        if self._client is None:
            self._client = openai.AsyncOpenAI(
                base_url=self._url, api_key=os.environ.get("OPENAI_API_KEY") or "none", max_retries=1
            )
        more: dict[str, Any] = {"tools": list(tools)} if tools else {}
        try:
            if not self._model:
                self._model = (await self._client.models.list()).data[0].id
            asked: Any = list(messages)
            reply = await self._client.chat.completions.create(model=self._model, messages=asked, **more)
            return _read_reply(reply.choices[0].message)
        except openai.APIConnectionError as error:
            raise DependencyLost(
                f"{self._url} does not answer: {error}; start the server, or correct --model"
            ) from error
        except (openai.OpenAIError, IndexError, AttributeError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"{self._url} gave no completion: {reason}; --model takes the base of an OpenAI-compatible API, "
                "e.g. http://127.0.0.1:8000/v1, --model-name a model of its, and OPENAI_API_KEY is its key"
            ) from error


def _read_reply(message: Any) -> AssistantMessage:
    """What a server's message says; arguments that are no object of JSON come as none."""
    calls = [_read_call(call) for call in message.tool_calls or []]
    return AssistantMessage(content=message.content or "", tool_calls=tuple(calls))


def _read_call(call: Any) -> ToolCall:
    try:
        arguments = plain_object(json.loads(call.function.arguments or "{}"), "arguments")
    except (ValueError, RecursionError, ContractError) as error:
        raise ConfigError(f"the server's call of {call.function.name} has no readable arguments: {error}") from error
    return ToolCall(id=call.id, name=call.function.name, arguments=arguments)
