"""Agent programs, each with one habit."""

import asyncio
import sys
import threading
from typing import Any

from openai import AsyncOpenAI


async def ask(client: Any, text: str) -> str:
    reply = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])
    return str(reply.choices[0].message.content)


async def echo(task: dict[str, Any], client: Any) -> dict[str, Any]:
    answer = await ask(client, f"seed {task['seed']} level {task['options']['level']}")
    return {"reward": 0.75, "success": "seed 7" in answer}


async def with_a_client_of_its_own(_task: dict[str, Any], client: Any) -> float:
    async with AsyncOpenAI(base_url=str(client.base_url), api_key=client.api_key, max_retries=0) as own:
        return float(len(await ask(own, "x")))


async def number_only(task: dict[str, Any], client: Any) -> float:
    return float(len(await ask(client, task["split"])))


async def silent(_task: dict[str, Any], _client: Any) -> float:
    return 1.0


async def raising(_task: dict[str, Any], client: Any) -> float:
    await ask(client, "x")
    raise KeyError("no such drawer")


async def exiting(_task: dict[str, Any], client: Any) -> float:
    await ask(client, "x")
    sys.exit(3)


async def exiting_in_a_task(_task: dict[str, Any], client: Any) -> float:
    async def leave() -> None:
        sys.exit(4)

    await ask(client, "x")
    await asyncio.gather(leave())
    return 0.0


async def cancelling(_task: dict[str, Any], client: Any) -> float:
    await ask(client, "x")
    raise asyncio.CancelledError("enough")


async def without_reward(_task: dict[str, Any], client: Any) -> dict[str, Any]:
    await ask(client, "x")
    return {"score": 1}


async def endless(_task: dict[str, Any], client: Any) -> float:
    await ask(client, "x")
    await asyncio.sleep(3600)
    return 0.0


FREED = threading.Event()


async def blocking(_task: dict[str, Any], client: Any) -> float:
    await ask(client, "x")
    FREED.wait(60)
    return 0.0


async def greedy(_task: dict[str, Any], client: Any) -> float:
    while True:
        await ask(client, "more")


async def greedy_for_context(_task: dict[str, Any], client: Any) -> float:
    text = "more"
    while True:
        text = await ask(client, text)


async def not_enough(_task: dict[str, Any], client: Any) -> dict[str, Any]:
    for _ in range(2):
        await ask(client, "x")
    try:
        await ask(client, "x")
    except Exception:
        return {"reward": 0.25, "success": True}
    return {"reward": 0.0}


async def forgiving(_task: dict[str, Any], client: Any) -> float:
    await ask(client, "x")
    try:
        await ask(client.with_options(max_retries=0), "y")
    except Exception:
        return 0.0
    return 1.0


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


async def unspeakable(_task: dict[str, Any], client: Any) -> float:
    await ask(client, "x")
    raise Unspeakable


def not_async(_task: dict[str, Any], _client: Any) -> float:
    return 0.0
