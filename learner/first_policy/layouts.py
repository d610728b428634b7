"""How what was said in demonstrations is laid out, remembered: the same grids and answers come back thousands of times.

The layout is that of `envs/dialogue.py`; nothing is laid out here in a way of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from milepost.envs.dialogue import Dialogue
from milepost.envs.messages import ToolSchema


class Layout:
    """`opening`, `following` (after a response that ended by itself) and `response` of one dialogue, as token ids.

    They raise what the dialogue raises.
    """

    def __init__(self, dialogue: Dialogue) -> None:
        self.dialogue = dialogue
        self.opening = _remembered(dialogue.opening)
        self.following = _remembered(lambda said: dialogue.continuation(said, closed=True))
        self.response = _remembered(dialogue.response)


class Layouts:
    """A layout for every set of tools that is met."""

    def __init__(self, dialogue: Dialogue) -> None:
        self._dialogue = dialogue
        self._made: dict[bytes, Layout] = {}

    def of(self, tools: Sequence[ToolSchema]) -> Layout:
        """The layout that tells of `tools`. Raises `TemplateError` where the chat template cannot."""
        key = msgspec.json.encode(tools)
        if key not in self._made:
            self._made[key] = Layout(self._dialogue.with_tools(tools) if tools else self._dialogue)
        return self._made[key]


def _remembered(lay_out: Callable[[Any], list[int]]) -> Callable[[Any], list[int]]:
    found: dict[bytes, list[int]] = {}

    def asked(said: Any) -> list[int]:
        key = msgspec.json.encode(said)
        if key not in found:
            found[key] = lay_out(said)
        return found[key]

    return asked
