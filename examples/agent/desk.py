"""An agent program with three tools over SQLite. When its history grows, a sub-agent sums it up and it begins anew.

It knows nothing of training. With a server of one's own it answers a task on standard input:

    echo '{"seed": 1, "options": {}}' | OPENAI_BASE_URL=http://127.0.0.1:8000/v1 python -m examples.agent.desk

In a run it is `agent.path = "examples.agent.desk:run"`, or `agent.command = ["python", "-m", "examples.agent.desk"]`.
"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import sys
from collections.abc import Callable
from typing import Any

from openai import AsyncOpenAI

NAMES = ("Ada", "Bo", "Cy", "Dee")
RULES = "You answer questions about orders with the tools. When you know it, answer with the number alone."
MOST_MESSAGES = 9
MOST_ANSWERS = 8


def tool(name: str, description: str, **parameters: str) -> dict[str, Any]:
    """A function as the API describes it; every parameter is required."""
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS = [
    tool("customers", "The names of all customers."),
    tool("orders_of", "The numbers of a customer's orders.", customer="string"),
    tool("price_of", "What an order costs, in cents.", order="integer"),
]


class Desk:
    """The database, the tools, and what is right."""

    def __init__(self, seed: int, orders: int) -> None:
        rng = random.Random(seed)
        rows = [(k, rng.choice(NAMES), rng.randrange(1, 100)) for k in range(1, orders + 1)]
        self.database = sqlite3.connect(":memory:", check_same_thread=False)  # some packages call tools on threads
        self.database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, cents INTEGER)")
        self.database.executemany("INSERT INTO orders VALUES (?, ?, ?)", rows)
        self.customer = rows[0][1]
        self.sum = sum(cents for _, customer, cents in rows if customer == self.customer)
        self.question = f"How many cents did {self.customer} spend in all?"

    def customers(self) -> str:
        """The names of all customers."""
        return self._found("SELECT DISTINCT customer FROM orders ORDER BY customer")

    def orders_of(self, customer: str) -> str:
        """The numbers of a customer's orders."""
        return self._found("SELECT id FROM orders WHERE customer = ?", customer)

    def price_of(self, order: int) -> str:
        """What an order costs, in cents."""
        return self._found("SELECT cents FROM orders WHERE id = ?", order)

    def judged(self, answer: str) -> dict[str, Any]:
        """The result of an episode that ends with `answer`: 1 for the right number."""
        right = answer.strip() == str(self.sum)
        return {"reward": float(right), "success": right}

    def call(self, name: str, arguments: str) -> str:
        """The result of a tool, or what is wrong with the call."""
        tools: dict[str, Callable[..., str]] = {
            "customers": self.customers,
            "orders_of": self.orders_of,
            "price_of": self.price_of,
        }
        if name not in tools:
            return f"there is no tool {name}"
        try:
            return tools[name](**json.loads(arguments))
        except (ValueError, TypeError) as error:
            return f"{type(error).__name__}: {error}"

    def _found(self, query: str, *values: object) -> str:
        try:
            return json.dumps([row[0] for row in self.database.execute(query, values)])
        except (OverflowError, sqlite3.Error) as error:
            return f"{type(error).__name__}: {error}"


async def run(task: dict[str, Any], client: AsyncOpenAI) -> dict[str, Any]:
    """Answer the question of `task`; the reward is 1 for the right number."""
    desk = Desk(task["seed"], **{"orders": 6} | task["options"])
    asked = [
        {"role": "system", "content": RULES},
        {"role": "user", "content": desk.question},
    ]
    messages: list[Any] = list(asked)
    for _ in range(MOST_ANSWERS):
        reply = await client.chat.completions.create(model="policy", messages=messages, tools=TOOLS)  # type: ignore[arg-type]
        said = reply.choices[0].message
        messages.append(said.model_dump(exclude_none=True))
        if not said.tool_calls:
            return desk.judged(said.content or "")
        for call in said.tool_calls:
            assert call.type == "function"
            content = desk.call(call.function.name, call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
        if len(messages) > MOST_MESSAGES:
            messages = [*asked, {"role": "user", "content": f"So far: {await summary(client, messages)}"}]
    return desk.judged("")


async def summary(client: AsyncOpenAI, messages: list[Any]) -> str:
    """What a conversation of its own makes of `messages`: a sub-agent, after which the history is forgotten."""
    known = "\n".join(str(message["content"]) for message in messages if message["role"] == "tool")
    asked: list[Any] = [{"role": "user", "content": f"Say in one line what these results tell:\n{known}"}]
    reply = await client.chat.completions.create(model="policy", messages=asked)
    return reply.choices[0].message.content or ""


async def _main() -> None:
    async with AsyncOpenAI() as client:
        print(json.dumps(await run(json.load(sys.stdin), client)))


if __name__ == "__main__":
    asyncio.run(_main())
