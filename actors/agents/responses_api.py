"""`POST /v1/responses`: OpenAI's responses, as requests and answers of an episode. Nothing is stored between them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from milepost.actors.agents import body as bodies
from milepost.actors.agents.calls import Answer, Request
from milepost.actors.agents.chat_api import Event
from milepost.actors.agents.lineages import ChatMessage, tool_call


def request(body: dict[str, Any], anchor: str | None) -> Request:
    """What `body` asks for. Raises CallRefused."""
    bodies.require_only(
        body,
        tool_choice=("auto",),
        parallel_tool_calls=(True,),
        previous_response_id=(),
        conversation=(),
        background=(False,),
        prompt=(),
    )
    form = bodies.mapping(body.get("text") or {}, "text").get("format")
    bodies.require_only({"text.format": form}, **{"text.format": ({"type": "text"},)})
    messages: list[ChatMessage] = []
    if body.get("instructions"):
        messages.append({"role": "system", "content": bodies.string(body, "instructions", "body")})
    given = body.get("input")
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    else:
        for k, item in enumerate(bodies.items(given, "input")):
            _add(messages, item, f"input[{k}]")
    tools = [_tool(tool, f"tools[{k}]") for k, tool in enumerate(bodies.items(body.get("tools") or [], "tools"))]
    return bodies.request(body, messages, tools, anchor)


def answer(answer: Answer, model: str) -> dict[str, Any]:
    """The response that is not streamed."""
    whole = answer.finish_reason != "length"
    return {
        **_head(model, "completed" if whole else "incomplete"),
        "output": _output(answer.message),
        "incomplete_details": None if whole else {"reason": "max_output_tokens"},
        "usage": {
            "input_tokens": answer.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": answer.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        },
    }


def events(answer_: Answer, model: str, _request: Request) -> Iterator[Event]:
    """The response as a stream of named, numbered events."""
    whole = answer(answer_, model)
    created = {**whole, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    steps: list[tuple[str, dict[str, Any]]] = [("response.created", {"response": created})]
    for index, item in enumerate(whole["output"]):
        at = {"item_id": item["id"], "output_index": index}
        empty: dict[str, Any] = {"content": []} if item["type"] == "message" else {"arguments": ""}
        begun = {**item, **empty, "status": "in_progress"}
        steps.append(("response.output_item.added", {"output_index": index, "item": begun}))
        steps += _message_steps(item, at) if item["type"] == "message" else _call_steps(item, at)
        steps.append(("response.output_item.done", {"output_index": index, "item": item}))
    steps.append((f"response.{whole['status']}", {"response": whole}))
    for number, (name, data) in enumerate(steps):
        yield name, {"type": name, "sequence_number": number, **data}


def _message_steps(item: dict[str, Any], at: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    (part,), at = item["content"], {**at, "content_index": 0}
    return [
        ("response.content_part.added", {**at, "part": {**part, "text": ""}}),
        ("response.output_text.delta", {**at, "delta": part["text"], "logprobs": []}),
        ("response.output_text.done", {**at, "text": part["text"], "logprobs": []}),
        ("response.content_part.done", {**at, "part": part}),
    ]


def _call_steps(item: dict[str, Any], at: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    arguments = item["arguments"]
    return [
        ("response.function_call_arguments.delta", {**at, "delta": arguments}),
        ("response.function_call_arguments.done", {**at, "arguments": arguments, "name": item["name"]}),
    ]


def _add(messages: list[ChatMessage], item: dict[str, Any], where: str) -> None:
    """Append what `item` says; text and calls of one answer become one assistant message."""
    kind = item.get("type", "message")
    if kind == "message":
        role = bodies.string(item, "role", where)
        role = "system" if role == "developer" else role
        if role not in ("system", "user", "assistant"):
            raise bodies.refused(f"{where}.role is {role!r}; known are system, developer, user, assistant")
        messages.append({"role": role, "content": bodies.text(item.get("content"), f"{where}.content")})
    elif kind == "function_call":
        call_id, name, arguments = (bodies.string(item, key, where) for key in ("call_id", "name", "arguments"))
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        messages[-1].setdefault("tool_calls", []).append(tool_call(call_id, name, arguments))
    elif kind == "function_call_output":
        content = bodies.text(item.get("output"), f"{where}.output")
        messages.append({"role": "tool", "content": content, "tool_call_id": bodies.string(item, "call_id", where)})
    elif kind == "item_reference":
        raise bodies.refused(
            f"{where} refers to an item by its id, and nothing is stored; send it whole (store = false)"
        )
    elif kind != "reasoning":
        raise bodies.refused(f"{where}.type is {kind!r}, which is not served here")


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise bodies.refused(f"{where}.type is {tool.get('type')!r}; only functions are served here")
    known = {key: tool[key] for key in ("name", "description", "parameters") if tool.get(key) is not None}
    return {"type": "function", "function": known}


def _output(message: ChatMessage) -> list[dict[str, Any]]:
    output: list[dict[str, Any]] = []
    if message["content"] or not message.get("tool_calls"):
        part = {"type": "output_text", "text": message["content"], "annotations": [], "logprobs": []}
        output.append(
            {"type": "message", "id": _id("msg"), "status": "completed", "role": "assistant", "content": [part]}
        )
    for call in message.get("tool_calls") or []:
        function = {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        output.append(
            {"type": "function_call", "id": _id("fc"), "call_id": call["id"], "status": "completed", **function}
        )
    return output


def _head(model: str, status: str) -> dict[str, Any]:
    return {
        "id": _id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "model": model,
        "error": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": None,
        "top_p": None,
        "tool_choice": "auto",
        "tools": [],
    }


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"
