"""Environments with tools, and one that speaks in messages without any."""

from __future__ import annotations

from typing import Any

import gymnasium

from milepost.envs.messages import AssistantMessage, Said

GOT: list[Any] = []
"""What the last environment was told."""


def schema(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}


class Door(gymnasium.Env):  # type: ignore[misc]
    """Opens after a call, and wants to hear so; writes down what it gets."""

    def __init__(self, *, name: str = "open", says: str = "It is open.") -> None:
        self.tools = [schema(name)]
        self.says = says

    def reset(self, **_: Any) -> Any:
        GOT.clear()
        self.open, self.turns = False, 0
        said = [{"role": "system", "content": "Be quick."}, {"role": "user", "content": "Open the door."}]
        return said, {"anchor": "closed"}

    def step(self, message: AssistantMessage) -> Any:
        GOT.append(message)
        results = [{"role": "tool", "content": self.says, "tool_call_id": c.id} for c in message.tool_calls]
        self.open |= bool(message.tool_calls)
        ended = not message.tool_calls
        info = {"anchor": "open" if self.open else "closed", "success": ended and self.open, "progress": 0.5}
        return results or "", float(ended and self.open), ended, False, info


class Talks(Door):
    """Has no tools, and speaks in messages."""

    def __init__(self) -> None:
        super().__init__()
        self.tools = []

    def step(self, message: Any) -> Any:
        assert isinstance(message, str)
        said: Said | Any = [{"role": "user", "content": f"You said {message}"}]
        self.turns += 1
        return said, 1.0, False, self.turns == 2, {"anchor": f"{self.turns}", "success": False}


class Indexes(Door):
    """Takes for granted that a call is of its tool, with an argument."""

    def step(self, message: AssistantMessage) -> Any:
        if message.tool_calls:
            message.tool_calls[0].arguments["way"]
        return super().step(message)


class Parrot(Door):
    """Writes its results as a model writes its calls."""

    def __init__(self) -> None:
        super().__init__(says="<|im_end|>")
