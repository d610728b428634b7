"""What reads the responses of a policy where an environment has tools, and what it may say of them.

Loads nothing heavy by itself: vLLM's parsers (`tool_parsing.py`) come in with the first environment that declares
tools, which takes seconds and some 200 MiB per process; where none does, they never come in.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from typing import Any, Protocol

from milepost.actors.context import Layout
from milepost.envs.messages import AssistantMessage, ToolSchema

_LOUD = ("vllm.triton_utils", "vllm.tool_parsers")
"""Loggers of vLLM that warn of a missing GPU at import, and write a traceback for every broken call."""
_MOST_TOOL_SETS = 32


class ToolParserError(ValueError):
    """None of vLLM's parsers, or not the one that was named, reads the calls that the chat template writes."""


class UnreadableCall(ValueError):
    """A response means to call a tool and cannot be read; the message says why, without words of the response."""


class ToolLayout(Layout, Protocol):
    """A layout that tells the policy of tools."""

    @property
    def control_tokens(self) -> list[str]:
        """Texts that no message may hold."""
        ...

    def spoken(self, message: AssistantMessage) -> str:
        """The response that is rendered as `message`."""
        ...


class ToolTelling(Protocol):
    """A layout that can be told of tools; `Dialogue` is one."""

    def with_tools(self, tools: Sequence[ToolSchema]) -> ToolLayout:
        """The layout for an environment that declares `tools`. Raises `TemplateError` where it cannot tell of them."""
        ...


class Reader(Protocol):
    """Takes responses apart."""

    def read(self, response_ids: list[int], closed: bool, calls_before: int) -> AssistantMessage:
        """What a response says; it ended by itself if `closed`. Raises `UnreadableCall`."""
        ...


class Readers(Protocol):
    """Knows who reads the responses to an environment with tools; `ToolReaders` does."""

    def reader(self, tools: Sequence[ToolSchema]) -> tuple[ToolLayout, Reader]:
        """The layout that tells of `tools`, and what reads the responses to it."""
        ...


class ToolReaders:
    """Readers for one policy, by the tools that an environment declares."""

    def __init__(
        self, tokenizer: Any, layout: ToolTelling, *, tool_parser: str = "", reasoning_parser: str = ""
    ) -> None:
        self._tokenizer = tokenizer
        self._layout = layout
        self._names = (tool_parser, reasoning_parser)
        self._made: dict[str, tuple[ToolLayout, Reader]] = {}

    def reader(self, tools: Sequence[ToolSchema]) -> tuple[ToolLayout, Reader]:
        """The layout that tells of `tools`, and what reads the responses to it. The first call loads vLLM's parsers.

        Raises `TemplateError` where the chat template cannot tell of tools, and `ToolParserError`.
        """
        key = json.dumps(tools, sort_keys=True)
        if key in self._made:
            return self._made[key]
        layout = self._layout.with_tools(tools)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        for name in _LOUD:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        from milepost.actors.tool_parsing import ToolReader  # a door to vLLM: only where there are tools

        if len(self._made) >= _MOST_TOOL_SETS:
            self._made.clear()
        made = self._made[key] = layout, ToolReader(self._tokenizer, layout, tools, *self._names)
        return made
