"""What environment and policy say to each other where they speak in messages, as chat templates take them.

An environment's side of a turn is a list of messages (or one text, which is one user message); the policy's side is an
`AssistantMessage`, read from its response by the parsers of its model family. Both are typed once, where they enter.
Not promised: that a chat template knows every role, or tools at all; `dialogue.py` looks for that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import msgspec

from milepost.envs.plain_values import ContractError, plain_object, plain_text, shown

Role = Literal["system", "user", "tool"]
ToolSchema = dict[str, Any]
"""A tool as OpenAI's function calling describes it: {"type": "function", "function": {"name", "description",
"parameters"}}, where `parameters` is a JSON schema."""


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message of an environment."""

    role: Role
    content: str
    name: str = ""
    """Of the tool that answers; "" for other roles."""
    tool_call_id: str = ""
    """The call that a tool answers; "" for other roles."""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that the policy calls."""

    id: str
    name: str
    """As the policy wrote it: there need be no such tool."""
    arguments: dict[str, Any]
    """As the policy wrote them: they need not fit the tool's schema."""


class AssistantMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What the policy said, taken apart: the action of an environment that declares tools."""

    content: str = ""
    """What it said beside its thoughts and calls."""
    reasoning: str = ""
    """Its thoughts, where its model family marks them."""
    tool_calls: tuple[ToolCall, ...] = ()


Said = str | Sequence[Message]
"""What an environment said: a text is one message of the role `user`."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A response and what the environment said to it."""

    response_ids: list[int]
    closed: bool
    """Whether the response ends with a stop token."""
    said: Said


def messages_of(said: Said) -> list[Message]:
    """`said` as messages."""
    return [Message(role="user", content=said)] if isinstance(said, str) else list(said)


def text_of(said: Said) -> str:
    """The contents of `said`, one below the other: what is bounded, shown to people, and an anchor by default."""
    return said if isinstance(said, str) else "\n".join(message.content for message in said)


def action_of(message: AssistantMessage) -> str:
    """A canonical action: the calls, one per line, without ids and with sorted arguments; without any, the content."""
    calls = [f"{call.name} {json.dumps(call.arguments, sort_keys=True)}" for call in message.tool_calls]
    return "\n".join(calls) or message.content.strip()


def read_said(value: object, where: str) -> Said:
    """The typed form of an observation: a text as it is, a list of messages as `Message`s. Raises `ContractError`.

    The role `system` is for the first message of `reset`.
    """
    if not isinstance(value, list | tuple):
        return plain_text(value, f"{where}: observation")
    if not value:
        raise ContractError(f"{where}: the observation is a list without messages")
    messages = tuple(_message(item, f"{where}: message {number}") for number, item in enumerate(value))
    late = [number for number, message in enumerate(messages) if message.role == "system"]
    if late and (where != "reset" or late != [0]):
        raise ContractError(f"{where}: message {late[-1]} has the role system, which only the first of reset may have")
    return messages


def read_tools(declared: object) -> tuple[ToolSchema, ...]:
    """The typed form of an environment's tools; raises `ContractError`."""
    if not isinstance(declared, list | tuple):
        raise ContractError(f"tools must be a list of dicts, found {shown(declared)}")
    tools = tuple(_tool(tool, f"tools[{number}]") for number, tool in enumerate(declared))
    names = tool_names(tools)
    if len(set(names)) != len(names):
        raise ContractError(f"tools: two have one name, {sorted(names)}")
    return tools


def tool_names(tools: Sequence[ToolSchema]) -> list[str]:
    """The names of `tools`."""
    return [str(tool["function"]["name"]) for tool in tools]


def declared_tools(env: object) -> object:
    """What the attribute `tools` of an environment, or of the one that it wraps, declares; () for anything else.

    Only a list of dicts is a declaration: environments had attributes of this name before.
    """
    for holder in (env, getattr(env, "unwrapped", None)):
        tools = getattr(holder, "tools", None)
        if isinstance(tools, list | tuple) and tools and all(isinstance(tool, Mapping) for tool in tools):
            return tools
    return ()


def _message(value: object, where: str) -> Message:
    if isinstance(value, Message):
        value = msgspec.to_builtins(value)
    if not isinstance(value, Mapping):
        raise ContractError(f"{where} must be a dict with role and content, found {shown(value)}")
    strange = sorted(str(key) for key in value.keys() - set(Message.__struct_fields__))
    if strange:
        raise ContractError(f"{where} has the key {strange[0]!r}; a message has {', '.join(Message.__struct_fields__)}")
    texts = {str(key): plain_text(value[key], f"{where}: {key}") for key in value}
    if texts.get("role") not in get_args(Role):
        raise ContractError(
            f"{where} has the role {texts.get('role')!r}; an environment has {', '.join(get_args(Role))}"
        )
    if "content" not in texts:
        raise ContractError(f"{where} has no content")
    return msgspec.convert(texts, Message)


def _tool(value: object, where: str) -> ToolSchema:
    tool = plain_object(value, where)
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict):
        raise ContractError(f'{where} must be {{"type": "function", "function": {{...}}}}, found {shown(value)}')
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise ContractError(f"{where}: function.name must be text, found {shown(function.get('name'))}")
    if not isinstance(function.setdefault("parameters", {"type": "object", "properties": {}}), dict):
        raise ContractError(
            f"{where}: function.parameters must be a JSON schema, found {shown(function['parameters'])}"
        )
    return tool
