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

    def __init__(self, readers: ToolReaders, decode: Callable[[list[int]], str], control_tokens: Sequence[str]) -> None:
        """`control_tokens` are texts that no message may hold: a client that sent them back would forge a turn."""
        self._readers = readers
        self._decode = decode
        self._control = list(control_tokens)
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
                return self._text(completion), False
            return _message(said), True
        return self._text(completion), True

    def _text(self, completion: Completion) -> ChatMessage:
        text = self._decode(completion.response_ids)
        for token in self._control:
            text = text.replace(token, "")
        return {"role": "assistant", "content": text}

    def _reader(self, tools: Sequence[ToolSchema]) -> Reader:
        key = json.dumps(tools, sort_keys=True)
        if key not in self._known:
            if len(self._known) >= _MOST_TOOL_SETS:
                self._known.clear()
            layout, self._known[key] = self._readers.reader(tools)
            self._control += [token for token in layout.control_tokens if token not in self._control]
        return self._known[key]


def _message(said: AssistantMessage) -> ChatMessage:
    message: ChatMessage = {"role": "assistant", "content": said.content}
    if said.reasoning:
        message["reasoning_content"] = said.reasoning
    if said.tool_calls:
        message["tool_calls"] = [tool_call(c.id, c.name, json.dumps(c.arguments)) for c in said.tool_calls]
    return message
