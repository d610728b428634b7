"""`POST /v1/chat/completions`: OpenAI's chat completions, as requests and answers of an episode."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from milepost.actors.agents import body as bodies
from milepost.actors.agents.calls import Answer, Request
from milepost.actors.agents.lineages import ChatMessage, tool_call

Event = tuple[str | None, dict[str, Any]]
"""An event of a stream: its name, where the API names events, and its data."""
_ROLES = ("system", "developer", "user", "assistant", "tool")


def request(body: dict[str, Any], anchor: str | None) -> Request:
    """What `body` asks for. Raises CallRefused."""
    bodies.require_only(
        body,
        n=(1,),
        tool_choice=("auto",),
        parallel_tool_calls=(True,),
        stop=([],),
        logprobs=(False,),
        logit_bias=({},),
        response_format=({"type": "text"},),
        functions=([],),
        function_call=(),
    )
    given = bodies.items(body.get("messages"), "messages")
    messages = [_message(item, f"messages[{k}]") for k, item in enumerate(given)]
    return bodies.request(body, messages, bodies.items(body.get("tools") or [], "tools"), anchor)


def answer(answer: Answer, model: str) -> dict[str, Any]:
    """The response that is not streamed."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "refusal": None, **answer.message},
        "finish_reason": answer.finish_reason,
        "logprobs": None,
    }
    return {**_head(model, "chat.completion"), "choices": [choice], "usage": _usage(answer)}


def events(answer: Answer, model: str, request: Request) -> Iterator[Event]:
    """The response as a stream: the message, its end, and the usage where the request asks for it."""
    head = _head(model, "chat.completion.chunk")
    calls = [{"index": k, **call} for k, call in enumerate(answer.message.get("tool_calls") or [])]
    delta = {**answer.message, **({"tool_calls": calls} if calls else {})}
    yield None, {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    end = {"index": 0, "delta": {}, "finish_reason": answer.finish_reason}
    yield None, {**head, "choices": [end]}
    if request.stream_usage:
        yield None, {**head, "choices": [], "usage": _usage(answer)}


def _message(item: dict[str, Any], where: str) -> ChatMessage:
    role = bodies.string(item, "role", where)
    if role not in _ROLES:
        raise bodies.refused(f"{where}.role is {role!r}; known are {', '.join(_ROLES)}")
    message: ChatMessage = {
        "role": "system" if role == "developer" else role,
        "content": bodies.text(item.get("content"), f"{where}.content"),
    }
    if role == "assistant" and item.get("tool_calls"):
        calls = bodies.items(item["tool_calls"], f"{where}.tool_calls")
        message["tool_calls"] = [_tool_call(call, f"{where}.tool_calls[{k}]") for k, call in enumerate(calls)]
    if role == "tool":
        message["tool_call_id"] = bodies.string(item, "tool_call_id", where)
    return message


def _tool_call(call: dict[str, Any], where: str) -> dict[str, Any]:
    function = bodies.mapping(call.get("function"), f"{where}.function")
    name, arguments = (bodies.string(function, key, f"{where}.function") for key in ("name", "arguments"))
    return tool_call(bodies.string(call, "id", where), name, arguments)


def _head(model: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _usage(answer: Answer) -> dict[str, Any]:
    prompt, completion = answer.prompt_tokens, answer.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
