"""Which earlier call a request continues, decided by exact equality of messages.

The requests of one episode form a tree. A request whose messages begin with all that an earlier call was shown and
answered continues that call: its prompt is that call's prompt, the very tokens that were sampled, and the layout of
what came after. Anything else (an edited or shortened history, a sub-agent's own conversation) is laid out anew and
begins a lineage. So no sampled token is ever encoded again.

A message is what its role, text and tool calls say. Not compared: thoughts, which clients do not send back; how the
JSON of arguments is spaced or ordered; fields of no meaning to a model (`refusal`, `annotations`, a name of null).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Message = dict[str, Any]
"""A chat message as OpenAI's API has it: `role`, `content` (text), and `tool_calls` or `tool_call_id`."""
Origin = Literal["first", "branch", "rewrite", "other"]
"""How a lineage began: the episode's first; a second answer to a history; a history that was changed; another one."""


class MessageLayout(Protocol):
    """How messages become token ids."""

    def opening(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[int]:
        """Ids of a prompt that shows `messages`."""
        ...

    def continuation(self, messages: Sequence[Message], closed: bool) -> list[int]:
        """Ids between a response, which ended by itself if `closed`, and the next one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a request stands: the prompt to sample from, and what it continues."""

    prompt_ids: list[int]
    lineage: int
    parent: int | None
    """The lineage it branched or turned away from, or that was under way when it began; None for the first."""
    origin: Origin | None
    """None where it continues its lineage."""
    key: str
    """Of the messages shown."""
    continues: str | None = None
    """Key of the call that it continues."""


@dataclass(slots=True)
class _Call:
    lineage: int
    ids: list[int]
    """Prompt and response."""
    stopped: bool
    is_continued: bool = False


@dataclass(slots=True)
class Lineages:
    """The calls of one episode. Not safe for threads; `place` and `answered` of several calls may interleave."""

    layout: MessageLayout
    count: int = 0
    rewrites: int = 0
    """Lineages that began with a changed history."""
    _calls: dict[str, _Call] = field(default_factory=dict)
    """By the key of what was shown and answered."""
    _shown: set[str] = field(default_factory=set)
    """Keys of what some call was shown, at every length."""
    _latest: int | None = None

    def place(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Place:
        """The prompt for a request, and the lineage it belongs to.

        Raises what the layout raises for messages that it cannot lay out.
        """
        keys = _keys(messages, tools)
        for length in range(len(messages) - 1, 0, -1):
            if keys[length] in self._calls:
                return self._continue(keys[length], messages[length:], keys)
        is_known = keys[1] in self._shown
        origin: Origin = "first" if self._latest is None else "rewrite" if is_known else "other"
        prompt_ids = self.layout.opening(messages, tools)
        return self._begin(prompt_ids, self._latest, origin, keys)

    def answered(self, place: Place, reply: Message, *, response_ids: list[int], stopped: bool) -> None:
        """The policy answered the request at `place` with `reply`, which stands for `response_ids`."""
        key = _extended(place.key, reply)
        self._calls[key] = _Call(place.lineage, place.prompt_ids + response_ids, stopped)
        self._latest = place.lineage

    def withdrawn(self, place: Place) -> None:
        """The request at `place` gets no answer; the next one like it stands there again."""
        if place.origin is None and place.continues is not None:
            self._calls[place.continues].is_continued = False

    def _continue(self, key: str, added: Sequence[Message], keys: list[str]) -> Place:
        call = self._calls[key]
        prompt_ids = call.ids + self.layout.continuation(added, call.stopped)
        if call.is_continued:
            return self._begin(prompt_ids, call.lineage, "branch", keys)
        call.is_continued = True
        return Place(prompt_ids=prompt_ids, lineage=call.lineage, parent=None, origin=None, key=keys[-1], continues=key)

    def _begin(self, prompt_ids: list[int], parent: int | None, origin: Origin, keys: list[str]) -> Place:
        self._shown.update(keys[1:])
        self.rewrites += origin == "rewrite"
        lineage, self.count = self.count, self.count + 1
        if self._latest is None:
            self._latest = lineage
        return Place(prompt_ids=prompt_ids, lineage=lineage, parent=parent, origin=origin, key=keys[-1])


def state_key(messages: Sequence[Message]) -> str:
    """Key of the state a call starts in: its newest tool results, else what else came after the last answer.

    Whoever called the same tool before and got the same result stands in the same state; the history before is no part
    of it, nor are the ids of the calls.

    >>> asked = [{"role": "user", "content": "2 + 2"}]
    >>> call = {"role": "assistant", "content": None, "tool_calls": []}
    >>> one = state_key([*asked, call, {"role": "tool", "content": "4", "tool_call_id": "a"}])
    >>> one == state_key([call, {"role": "tool", "content": "4", "tool_call_id": "b"}]), one == state_key(asked)
    (True, False)
    """
    answers = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
    newest = messages[answers[-1] + 1 :] if answers else messages
    results = [message for message in newest if message["role"] == "tool"] or newest
    said = [[message["role"], _text(message.get("content"))] for message in results]
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=12).hexdigest()


def action_of(message: Message) -> str:
    """What an answer does, in one canonical line: its tool calls with sorted arguments, else its text.

    >>> action_of({"content": "", "tool_calls": [{"function": {"name": "add", "arguments": '{"b": 2, "a": 1}'}}]})
    'add({"a": 1, "b": 2})'
    """
    calls = [_tool_call(call) for call in message.get("tool_calls") or []]
    return "; ".join(f"{name}({arguments})" for name, arguments in calls) or _text(message.get("content")).strip()


def _keys(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """Key k is that of the tools and the first k messages."""
    keys = [hashlib.blake2b(json.dumps(list(tools), sort_keys=True).encode(), digest_size=16).hexdigest()]
    for message in messages:
        keys.append(_extended(keys[-1], message))
    return keys


def _extended(key: str, message: Message) -> str:
    calls = [_tool_call(call) for call in message.get("tool_calls") or []]
    said = [key, message["role"], _text(message.get("content")), calls, message.get("tool_call_id")]
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()


def _text(content: object) -> str:
    return content if isinstance(content, str) else ""


def _tool_call(call: Mapping[str, Any]) -> tuple[str, str]:
    function = call["function"]
    arguments = function["arguments"]
    try:
        return function["name"], json.dumps(json.loads(arguments), sort_keys=True)
    except ValueError:  # a model wrote it
        return function["name"], arguments
