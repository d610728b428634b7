"""Which earlier call a request continues, decided by exact equality of messages.

The requests of one episode form a tree. A request whose messages begin with all that an earlier call was shown and
answered continues that call: its prompt is that call's prompt, the very tokens that were sampled, and the layout of
what came after. Anything else (an edited or shortened history, a sub-agent's own conversation) is laid out anew and
begins a lineage. So no sampled token is ever encoded again.

A message is what its role, text and tool calls say. Not compared: thoughts, which clients do not send back; how the
JSON of arguments is spaced or ordered, and 1.0 from 1, which JavaScript does not tell apart; fields of no meaning to a
model (`refusal`, `annotations`, a name of null).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from milepost.envs.messages import AssistantMessage, Exchange, Message, Said, ToolSchema

ChatMessage = dict[str, Any]
"""A chat message as OpenAI's API has it: `role`, `content` (text), and `tool_calls` or `tool_call_id`."""


class ConversationLayout(Protocol):
    """How messages become token ids; `envs.dialogue.Dialogue` is one."""

    @property
    def appends(self) -> bool:
        """Whether a prompt, its response and `continuation` are the next prompt."""
        ...

    def with_tools(self, tools: Sequence[ToolSchema]) -> ConversationLayout:
        """The layout where `tools` are offered."""
        ...

    def conversation(self, messages: Sequence[ChatMessage], exchanges: Sequence[Exchange] = ()) -> list[int]:
        """Ids of a prompt that shows `messages`, answers among them, and then `exchanges`."""
        ...

    def continuation(self, said: Said, closed: bool) -> list[int]:
        """Ids between a response, which ended by itself if `closed`, and the next one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a request stands: the prompt to sample from, and what it continues."""

    prompt_ids: list[int]
    lineage: int
    parent: int | None
    """The lineage it branched or turned away from, or that was under way when it began; None for the first."""
    begins: bool
    """Whether it begins that lineage, and does not continue it."""
    key: str
    """Of the messages shown."""
    beginning: list[ChatMessage]
    """What its lineage was shown at first."""
    exchanges: list[Exchange]
    """The answers since, and what was said to each."""
    continues: str | None = None
    """Key of the call that it continues."""


@dataclass(slots=True, kw_only=True)
class _Call:
    place: Place
    response_ids: list[int]
    stopped: bool
    is_continued: bool = False


@dataclass(slots=True)
class Lineages:
    """The calls of one episode. Not safe for threads; `place` and `answered` of several calls may interleave."""

    layout: ConversationLayout
    count: int = 0
    _calls: dict[str, _Call] = field(default_factory=dict)
    """By the key of what was shown and answered."""
    _latest: int | None = None

    def place(self, messages: Sequence[ChatMessage], tools: Sequence[ToolSchema]) -> Place:
        """The prompt for a request, and the lineage it belongs to.

        Raises what the layout raises for messages that it cannot lay out.
        """
        keys, layout = _keys(messages, tools), self.layout.with_tools(tools)
        for length in range(len(messages) - 1, 0, -1):
            if messages[length]["role"] == "assistant":  # and before it: an answer that nobody sampled
                break
            if keys[length] in self._calls:
                return self._continue(layout, keys[length], messages[length:], keys)
        beginning = [_as_template_takes(message) for message in messages]
        return self._begin(
            Place(
                prompt_ids=layout.conversation(beginning),
                lineage=self.count,
                parent=self._latest,
                begins=True,
                key=keys[-1],
                beginning=beginning,
                exchanges=[],
            )
        )

    def answered(self, place: Place, reply: ChatMessage, *, response_ids: list[int], stopped: bool) -> None:
        """The policy answered the request at `place` with `reply`, which stands for `response_ids`."""
        key = _extended(place.key, reply)
        self._calls[key] = _Call(place=place, response_ids=response_ids, stopped=stopped)
        self._latest = place.lineage

    def withdrawn(self, place: Place) -> None:
        """The request at `place` gets no answer; the next one like it stands there again."""
        if not place.begins and place.continues is not None:
            self._calls[place.continues].is_continued = False
        elif place.begins and place.lineage == self.count - 1:
            self.count -= 1
            if not self._calls:
                self._latest = None

    def _continue(self, layout: ConversationLayout, key: str, added: Sequence[ChatMessage], keys: list[str]) -> Place:
        call, said = self._calls[key], [_said(message) for message in added]
        before = call.place
        exchanges = [*before.exchanges, Exchange(call.response_ids, call.stopped, said)]
        if layout.appends:
            prompt_ids = before.prompt_ids + call.response_ids + layout.continuation(said, call.stopped)
        else:
            prompt_ids = layout.conversation(before.beginning, exchanges)
        branches = call.is_continued
        call.is_continued = True
        place = Place(
            prompt_ids=prompt_ids,
            lineage=self.count if branches else before.lineage,
            parent=before.lineage if branches else None,
            begins=branches,
            key=keys[-1],
            beginning=before.beginning,
            exchanges=exchanges,
            continues=key,
        )
        return self._begin(place) if branches else place

    def _begin(self, place: Place) -> Place:
        self.count += 1
        if self._latest is None:
            self._latest = place.lineage
        return place


def tool_call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """A tool call as a chat message holds it."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def chat_message(said: AssistantMessage) -> ChatMessage:
    """What the policy said, as a chat message."""
    message: ChatMessage = {"role": "assistant", "content": said.content}
    if said.reasoning:
        message["reasoning_content"] = said.reasoning
    if said.tool_calls:
        message["tool_calls"] = [tool_call(c.id, c.name, json.dumps(c.arguments)) for c in said.tool_calls]
    return message


def state_key(messages: Sequence[ChatMessage]) -> str:
    """Key of the state a call starts in: its newest tool results, else what else came after the last answer.

    Whoever called the same tool before and got the same result stands in the same state; the history before is no part
    of it, nor are the ids of the calls.

    >>> asked = [{"role": "user", "content": "2 + 2"}]
    >>> call = {"role": "assistant", "content": "", "tool_calls": []}
    >>> one = state_key([*asked, call, {"role": "tool", "content": "4", "tool_call_id": "a"}])
    >>> one == state_key([call, {"role": "tool", "content": "4", "tool_call_id": "b"}]), one == state_key(asked)
    (True, False)
    """
    later = newest(messages)
    results = [message for message in later if message["role"] == "tool"] or later
    said = [[message["role"], message["content"]] for message in results]
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=12).hexdigest()


def newest(messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
    """The messages after the last answer; all of them where there is none."""
    answers = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
    return messages[answers[-1] + 1 :] if answers else messages


def _keys(messages: Sequence[ChatMessage], tools: Sequence[ToolSchema]) -> list[str]:
    """Key k is that of the tools and the first k messages."""
    keys = [hashlib.blake2b(json.dumps(list(tools), sort_keys=True).encode(), digest_size=16).hexdigest()]
    for message in messages:
        keys.append(_extended(keys[-1], message))
    return keys


def _extended(key: str, message: ChatMessage) -> str:
    calls = [_tool_call(call) for call in message.get("tool_calls") or []]
    said = [key, message["role"], message["content"], calls, message.get("tool_call_id")]
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()


def _said(message: ChatMessage) -> Message:
    return Message(role=message["role"], content=message["content"], tool_call_id=message.get("tool_call_id", ""))


def _as_template_takes(message: ChatMessage) -> ChatMessage:
    """The message with the arguments of its calls as an object, where the model wrote one."""
    if not message.get("tool_calls"):
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    calls = [{**call, "function": _function(f)} for call, f in zip(message["tool_calls"], functions, strict=True)]
    return {**message, "tool_calls": calls}


def _function(function: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {**function, "arguments": json.loads(function["arguments"])}
    except (ValueError, RecursionError):
        return dict(function)


def _tool_call(call: Mapping[str, Any]) -> tuple[str, str]:
    function = call["function"]
    arguments = function["arguments"]
    try:
        return function["name"], json.dumps(json.loads(arguments, parse_float=_number), sort_keys=True)
    except (ValueError, RecursionError):  # a model or a client wrote it
        return function["name"], arguments


def _number(text: str) -> float | int:
    number = float(text)
    return int(number) if number.is_integer() else number
