"""An agent program at the order desk, on the `openai` package. It knows nothing of training.

With a server of one's own it plays a task on standard input:

    echo '{"seed": 1, "options": {}}' | OPENAI_BASE_URL=http://127.0.0.1:8000/v1 python -m examples.order_desk.program
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy
from openai import AsyncOpenAI

from examples.order_desk.desk import RULES, Desk


def tool(name: str, description: str, **parameters: str) -> dict[str, Any]:
    """A function as the API describes it; every parameter is required."""
    schema = {
        "properties": {key: {"type": kind} for key, kind in parameters.items()},
        "required": list(parameters),
        "type": "object",
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS = [
    tool("first", "A customer's first order.", customer="string"),
    tool("next", "The same customer's next order.", order="integer"),
    tool("cancel", "Cancel an order and close the case.", order="integer"),
]


def called(desk: Desk, name: str, arguments: str) -> str:
    """The result of a tool, or what is wrong with the call."""
    tools: dict[str, Callable[..., str]] = {"first": desk.first, "next": desk.next, "cancel": desk.cancel}
    try:
        return tools[name](**json.loads(arguments))
    except Exception as error:  # a model wrote the call: it may hold anything
        return f"Nothing was done: {type(error).__name__}: {error}"


async def run(task: dict[str, Any], client: AsyncOpenAI) -> dict[str, Any]:
    """Serve the customer of `task`; the reward is 1 if the right order is cancelled and no other."""
    desk = Desk()
    desk.draw(numpy.random.default_rng(task["seed"]))
    messages: list[Any] = [{"role": "system", "content": RULES}, {"role": "user", "content": desk.task}]
    for _ in range(task["options"].get("max_steps", 6)):
        reply = await client.chat.completions.create(model="policy", messages=messages, tools=TOOLS)  # type: ignore[arg-type]
        said = reply.choices[0].message
        messages.append(said.model_dump(exclude_none=True))
        for call in said.tool_calls or []:
            assert call.type == "function"
            content = called(desk, call.function.name, call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
        if desk.is_solved or not said.tool_calls:
            break
    return {"reward": float(desk.is_solved), "success": desk.is_solved}


async def _main() -> None:
    async with AsyncOpenAI() as client:
        print(json.dumps(await run(json.load(sys.stdin), client)))


if __name__ == "__main__":
    asyncio.run(_main())
