"""An agent program: it asks a model through OpenAI's API, calls tools of its own, and says how well it went.

It knows nothing of training. `run` is called once for every episode.
"""

import json
import random
from typing import Any

from openai import AsyncOpenAI

THINGS = ("bolts", "hooks", "nails", "pins", "rings", "screws")
SHELVES = "ABCDEF"
MOST_ANSWERS = 5


def tool(name: str, description: str, argument: str, meaning: str) -> dict[str, Any]:
    """A function of one text, as the API describes it."""
    properties = {argument: {"type": "string", "description": meaning}}
    schema = {"type": "object", "properties": properties, "required": [argument], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS = [
    tool("shelf_of", "The shelf on which a thing lies.", "thing", "Its name, in the plural."),
    tool("pieces_on", "How many pieces lie on a shelf.", "shelf", "Its letter."),
]


class Stock:
    """What lies where: every thing on a shelf of its own."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.shelf_of = dict(zip(THINGS, rng.sample(SHELVES, len(THINGS)), strict=True))
        self.pieces_on = {shelf: str(rng.randint(1, 9)) for shelf in self.shelf_of.values()}
        self.thing = rng.choice(THINGS)
        self.pieces = self.pieces_on[self.shelf_of[self.thing]]

    def call(self, name: str, arguments: str) -> str:
        """The result of a tool, or what is wrong with the call."""
        try:
            given = json.loads(arguments)
            return self.shelf_of[given["thing"]] if name == "shelf_of" else self.pieces_on[given["shelf"]]
        except (ValueError, KeyError, TypeError) as error:
            return f"{type(error).__name__}: {error}"


async def run(task: dict[str, Any], client: AsyncOpenAI) -> dict[str, Any]:
    """Answer the question of `task`; the reward is 1 for the right number."""
    stock = Stock(task["seed"])
    question = f"How many {stock.thing} are there? Look it up, then answer with the number alone."
    messages: list[Any] = [{"role": "user", "content": question}]
    for _ in range(MOST_ANSWERS):
        reply = await client.chat.completions.create(model="policy", messages=messages, tools=TOOLS)  # type: ignore[arg-type]
        said = reply.choices[0].message
        messages.append(said.model_dump(exclude_none=True))
        if not said.tool_calls:
            solved = (said.content or "").strip() == stock.pieces
            return {"reward": float(solved), "success": solved}
        for call in said.tool_calls:
            assert call.type == "function"
            content = stock.call(call.function.name, call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
    return {"reward": 0.0, "success": False}
