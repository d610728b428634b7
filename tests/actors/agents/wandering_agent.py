"""An agent program that does what agents do with a history: edits, forgets, asks twice, starts sub-agents."""

import asyncio
import random
from typing import Any


async def run(task: dict[str, Any], client: Any) -> dict[str, Any]:
    rng = random.Random(task["episode_seed"])
    history: list[dict[str, Any]] = [{"role": "system", "content": "main"}, {"role": "user", "content": "go"}]
    for step in range(task["options"].get("steps", 8)):
        said = await _say(client, history)
        history.append({"role": "assistant", "content": said})
        match rng.randrange(6):
            case 0:
                history[-1]["content"] = f"edited {step}"
            case 1:
                history = [history[0], {"role": "user", "content": f"so far {step}"}]
                continue
            case 2:
                sub = [{"role": "system", "content": "sub"}, {"role": "user", "content": f"look {step}"}]
                for _ in range(2):
                    sub.append({"role": "assistant", "content": await _say(client, sub)})
                    sub.append({"role": "user", "content": "more"})
            case 3:
                tries = [_say(client, [*history, {"role": "user", "content": "again"}]) for _ in range(2)]
                await asyncio.gather(*tries)
        history.append({"role": "user", "content": f"next {step}"})
    return {"reward": rng.random(), "success": rng.random() < 0.5}


async def _say(client: Any, messages: list[dict[str, Any]]) -> str:
    reply = await client.chat.completions.create(model="policy", messages=messages)
    return str(reply.choices[0].message.content)
