"""`POST /v1/messages`: Anthropic's messages, as requests and answers of an episode."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

from milepost.actors.agents import body as bodies
from milepost.actors.agents.calls import Answer, Request
from milepost.actors.agents.chat_api import Event
from milepost.actors.agents.lineages import ChatMessage, tool_call

_REASONS = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}
_THOUGHTS = ("thinking", "redacted_thinking")


def request(body: dict[str, Any], anchor: str | None) -> Request:
    """What `body` asks for. Raises CallRefused."""
    bodies.require_only(body, stop_sequences=([],), tool_choice=({"type": "auto"},), output_format=())
    messages: list[ChatMessage] = []
    if body.get("system"):
        messages.append({"role": "system", "content": bodies.text(body["system"], "system")})
    for k, item in enumerate(bodies.items(body.get("messages"), "messages")):
        _add(messages, item, f"messages[{k}]")
    tools = [_tool(tool, f"tools[{k}]") for k, tool in enumerate(bodies.items(body.get("tools") or [], "tools"))]
    return bodies.request(body, messages, tools, anchor)


def answer(answer: Answer, model: str) -> dict[str, Any]:
    """The response that is not streamed."""
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": _content(answer.message),
        "stop_reason": _REASONS[answer.finish_reason],
        "stop_sequence": None,
        "usage": {"input_tokens": answer.prompt_tokens, "output_tokens": answer.completion_tokens},
    }


def events(answer_: Answer, model: str, _request: Request) -> Iterator[Event]:
    """The response as a stream of named events."""
    whole = answer(answer_, model)
    usage = {**whole["usage"], "output_tokens": 0}
    yield _event("message_start", message={**whole, "content": [], "stop_reason": None, "usage": usage})
    for index, block in enumerate(whole["content"]):
        if block["type"] == "text":
            begun, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
        else:
            begun = {**block, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        yield _event("content_block_start", index=index, content_block=begun)
        yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
    end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield _event("message_delta", delta=end, usage={"output_tokens": whole["usage"]["output_tokens"]})
    yield _event("message_stop")


def _event(name: str, **data: Any) -> Event:
    return name, {"type": name, **data}


def _add(messages: list[ChatMessage], item: dict[str, Any], where: str) -> None:
    """Append what `item` says: a user's message may hold results of tools, which come first."""
    role = bodies.string(item, "role", where)
    if role not in ("user", "assistant"):
        raise bodies.refused(f"{where}.role is {role!r}; known are user, assistant")
    content = item.get("content")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else bodies.items(content, where)
    said, calls = [], []
    for k, block in enumerate(blocks):
        at = f"{where}.content[{k}]"
        match block.get("type"):
            case "text":
                said.append(bodies.string(block, "text", at))
            case "tool_use" if role == "assistant":
                arguments = json.dumps(bodies.mapping(block.get("input"), f"{at}.input"))
                calls.append(tool_call(bodies.string(block, "id", at), bodies.string(block, "name", at), arguments))
            case "tool_result" if role == "user":
                result = bodies.text(block.get("content"), f"{at}.content")
                asked = bodies.string(block, "tool_use_id", at)
                messages.append({"role": "tool", "content": result, "tool_call_id": asked})
            case kind if kind not in _THOUGHTS:
                raise bodies.refused(f"{at}.type is {kind!r}, which is not served here from a message of role {role}")
    if said or calls or not blocks:
        messages.append({"role": role, "content": "".join(said), **({"tool_calls": calls} if calls else {})})


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    function = {"name": bodies.string(tool, "name", where), "description": tool.get("description") or ""}
    schema = bodies.mapping(tool.get("input_schema"), f"{where}.input_schema")
    return {"type": "function", "function": {**function, "parameters": schema}}


def _content(message: ChatMessage) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if message["content"] or not message.get("tool_calls"):
        blocks.append({"type": "text", "text": message["content"]})
    for call in message.get("tool_calls") or []:
        function = call["function"]
        blocks.append(
            {"type": "tool_use", "id": call["id"], "name": function["name"], "input": json.loads(function["arguments"])}
        )
    return blocks
