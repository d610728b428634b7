"""An episode in the terminal while it is played: what was shown, what was answered, what that was worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from milepost.cluster.base.quoted import Quoted, plain
from milepost.envs.contract import Reset, Step
from milepost.envs.messages import ToolSchema, messages_of

ANSWER_BAR = "▌"
_SHOWN_BAR = "│"
_MOST_ANCHOR = 60
"""Characters of an anchor on its line."""
_OUTCOME_STYLE = {"success": "bold green", "failure": "bold red", "truncated": "bold yellow"}


class View:
    """Prints as things happen."""

    def __init__(self, console: Console, *, echoed: bool = False) -> None:
        """`echoed`: answers stand in the terminal already, as they were typed."""
        self._console = console
        self._echoed = echoed
        self._turns = 0

    def note(self, text: str) -> None:
        """A line about what goes on."""
        self._console.print(plain(text, "dim"))

    def messages(self, messages: Sequence[dict[str, Any]]) -> None:
        """What the policy is shown: chat messages."""
        for message in messages:
            role = "" if message["role"] == "user" else f"{message['role']}: "
            self._console.print(Quoted(_SHOWN_BAR, role + message["content"], ""))

    def tools(self, tools: Sequence[ToolSchema]) -> None:
        """What the policy may call."""
        if tools:
            self.note(f"tools: {', '.join(map(_signature, tools))}")

    def seen(self, seen: Reset | Step) -> None:
        """What an environment returned."""
        if isinstance(seen, Reset):
            self.tools(seen.tools)
        else:
            self._judged(seen)
        if seen.observation:
            self.messages([{"role": m.role, "content": m.content} for m in messages_of(seen.said)])

    def answered(self, text: str) -> None:
        """What the policy answered."""
        self._turns += 1
        if not self._echoed:
            self._console.print()
            self._console.print(Quoted(ANSWER_BAR, text or "(no answer)", "bold"))

    def ended(self, outcome: str, reward: float) -> None:
        """How the episode came out."""
        said = f"\n{outcome}, reward {reward:g}, {self._turns} turn{'s' * (self._turns != 1)}"
        self._console.print(Text(said, style=_OUTCOME_STYLE[outcome]))

    def _judged(self, step: Step) -> None:
        action = "no valid action" if step.action is None else f"action: {_brief(step.action)}"
        state = "the text below" if step.anchor == step.observation else _brief(step.anchor)
        progress = "" if step.progress is None else f" · progress {step.progress:.0%}"
        self.note(f"turn {self._turns} · reward {step.reward:g}{progress} · {action} · state: {state}")


def _brief(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_ANCHOR else f"{line[:_MOST_ANCHOR]} ..."


def _signature(tool: ToolSchema) -> str:
    function = tool["function"]
    return f"{function['name']}({', '.join(function['parameters'].get('properties', {}))})"
