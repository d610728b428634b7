"""What the policy's answers say, as the chat messages that agent programs get."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from milepost.actors.agents.chat_api import tool_call
from milepost.actors.agents.lineages import ChatMessage
from milepost.actors.engine import Completion
from milepost.actors.tool_reading import Reader, ToolReaders, UnreadableCall
from milepost.envs.messages import AssistantMessage, ToolSchema

_MOST_TOOL_SETS = 32


class Replies:
    """Takes answers apart, by the tools that a request offers; a request without any is answered with text."""

    def __init__(self, readers: ToolReaders, decode: Callable[[list[int]], str]) -> None:
        self._readers = readers
        self._decode = decode
        self._known: dict[str, Reader] = {}

    def read(self, completion: Completion, tools: Sequence[ToolSchema], calls_before: int) -> tuple[ChatMessage, bool]:
        """The assistant's message, and whether it could be read; its calls are numbered on from `calls_before`.

        Raises `TemplateError` or `ToolParserError` where the policy's model cannot be offered tools.
        """
        if tools:
            reader = self._reader(tools)
            try:
                said = reader.read(completion.response_ids, completion.stopped, calls_before)
            except UnreadableCall:
                return _text(self._decode(completion.response_ids)), False
            return _message(said), True
        return _text(self._decode(completion.response_ids)), True

    def _reader(self, tools: Sequence[ToolSchema]) -> Reader:
        key = json.dumps(tools, sort_keys=True)
        if key not in self._known:
            if len(self._known) >= _MOST_TOOL_SETS:
                self._known.clear()
            self._known[key] = self._readers.reader(tools)[1]
        return self._known[key]


def _text(content: str) -> ChatMessage:
    return {"role": "assistant", "content": content}


def _message(said: AssistantMessage) -> ChatMessage:
    message = _text(said.content)
    if said.reasoning:
        message["reasoning_content"] = said.reasoning
    if said.tool_calls:
        message["tool_calls"] = [tool_call(c.id, c.name, json.dumps(c.arguments)) for c in said.tool_calls]
    return message
