"""Made-up tool calls: what a check says to an environment with tools that has no demonstration."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from milepost.envs.messages import AssistantMessage, ToolCall, ToolSchema

_ANSWERS = 0.25
"""How often there is an answer and no call: episodes are to end, too."""


def made_up_message(rng: random.Random, tools: Sequence[ToolSchema]) -> AssistantMessage:
    """A call of one of `tools` with arguments of the kinds that its schema names, or an answer."""
    if rng.random() < _ANSWERS:
        return AssistantMessage(content="I do not know.")
    function = rng.choice(tools)["function"]
    schema = function["parameters"]
    arguments = {name: _value(rng, kind) for name, kind in schema.get("properties", {}).items()}
    return AssistantMessage(tool_calls=(ToolCall(id="", name=function["name"], arguments=arguments),))


def mistaken_messages(tools: Sequence[ToolSchema]) -> list[AssistantMessage]:
    """The calls no author thinks of: no such tool, no arguments, strange ones."""
    calls: list[tuple[str, dict[str, Any]]] = [("no_such_tool", {})]
    for tool in tools:
        strange: dict[str, Any] = {"no_such_argument": [None, {"x": 1e300}]}
        wrong: dict[str, Any] = {name: [{}] for name in tool["function"]["parameters"].get("properties", {})}
        calls += [(tool["function"]["name"], arguments) for arguments in ({}, strange, wrong)]
    return [AssistantMessage(tool_calls=(ToolCall(id="", name=n, arguments=a),)) for n, a in calls]


def _value(rng: random.Random, schema: Any) -> Any:
    """A small value of the kind that a JSON schema asks for; text where it asks for none that is known here."""
    schema = schema if isinstance(schema, dict) else {}
    if schema.get("enum"):
        return rng.choice(schema["enum"])
    numbers = {"integer": rng.randint(0, 9), "number": rng.random(), "boolean": rng.random() < 0.5}
    empty: dict[str, Any] = {"array": [], "object": {}, "null": None}
    return (numbers | empty).get(str(schema.get("type")), rng.choice(["x", "left", "7"]))
