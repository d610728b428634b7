"""What the policy's answers say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from milepost.actors.engine import Completion
from milepost.actors.tool_reading import Readers, UnreadableCall
from milepost.envs.messages import AssistantMessage, ToolSchema


class Replies:
    """Takes answers apart, by the tools that a request offers; a request without any is answered with text."""

    def __init__(self, readers: Readers, decode: Callable[[list[int]], str], control_tokens: Sequence[str]) -> None:
        """`control_tokens` are texts that no message may hold: a client that sent them back would forge a turn."""
        self._readers = readers
        self._decode = decode
        self._control = set(control_tokens)

    def read(
        self, completion: Completion, tools: Sequence[ToolSchema], calls_before: int
    ) -> tuple[AssistantMessage, bool]:
        """What was said, and whether it could be read; its calls are numbered on from `calls_before`.

        Raises `TemplateError` or `ToolParserError` where the policy's model cannot be offered tools.
        """
        if not tools:
            return self._text(completion), True
        layout, reader = self._readers.reader(tools)
        self._control.update(layout.control_tokens)
        try:
            return reader.read(completion.response_ids, completion.stopped, calls_before), True
        except UnreadableCall:
            return self._text(completion), False

    def _text(self, completion: Completion) -> AssistantMessage:
        text = self._decode(completion.response_ids)
        for token in self._control:
            text = text.replace(token, "")
        return AssistantMessage(content=text)
