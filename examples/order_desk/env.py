"""The order desk as an environment with tools, and a noisy expert for the small model's warm-up.

`milepost check-env examples.order_desk.env:OrderDesk` plays it without a model.
"""

from __future__ import annotations

import json
import random
from typing import Any

from examples.order_desk.desk import CUSTOMERS, ORDERS_EACH, RULES, Desk
from milepost.envs.messages import AssistantMessage, Message, Said, ToolCall, text_of
from milepost.envs.tool_env import ToolEnv

_NUMBERS = range(1, 2 * ORDERS_EACH + 1)


class OrderDesk(ToolEnv):
    """Takes 3 to 5 turns: the customer's first order, the next ones until one is open, cancel it."""

    def __init__(self, *, max_steps: int = 6) -> None:
        self.desk = Desk()
        super().__init__([self.desk.first, self.desk.next, self.desk.cancel], max_steps=max_steps)

    def start(self) -> Said:
        """Draw a case and say it."""
        self.desk.draw(self.np_random)
        self.shown = ""
        return [Message(role="system", content=RULES), Message(role="user", content=self.desk.task)]

    def solved(self, _: str | None) -> bool:
        """Whether the right order is cancelled; no answer makes up for that."""
        return self.desk.is_solved

    def step(self, message: Any) -> Any:
        """As the base class has it; the expert remembers the order that was shown last."""
        returned = super().step(message)
        said = text_of(returned[0])
        self.shown = said if said.startswith("{") else self.shown
        return returned

    def demonstration(self, rng: random.Random, noise: float) -> AssistantMessage:
        """What a clerk does; with probability `noise` any call, or nothing more."""
        calls: list[tuple[str, dict[str, Any]]] = [
            ("first", {"customer": rng.choice(CUSTOMERS)}),
            ("next", {"order": rng.choice(_NUMBERS)}),
            ("cancel", {"order": rng.choice(_NUMBERS)}),
        ]
        call = rng.choice([*calls, None]) if rng.random() < noise else self._best()
        if call is None:
            return AssistantMessage(content="Done.")
        return AssistantMessage(tool_calls=(ToolCall(id="call00000", name=call[0], arguments=call[1]),))

    def _best(self) -> tuple[str, dict[str, Any]] | None:
        if self.desk.cancelled:
            return None
        if not self.shown:
            return "first", {"customer": self.desk.customer}
        order = json.loads(self.shown)
        return "cancel" if order["state"] == "open" else "next", {"order": order["order"]}
