"""The desk as a program of the OpenAI Agents SDK (`pip install openai-agents`): its runner calls the tools.

    echo '{"seed": 1, "options": {}}' | OPENAI_BASE_URL=http://127.0.0.1:8000/v1 python -m examples.agent.agents_sdk

In a run it is `agent.path = "examples.agent.agents_sdk:run"`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from agents import Agent, MaxTurnsExceeded, ModelBehaviorError, OpenAIResponsesModel, RunConfig, Runner, function_tool
from openai import AsyncOpenAI

from examples.agent.desk import MOST_ANSWERS, RULES, Desk


async def run(task: dict[str, Any], client: AsyncOpenAI) -> dict[str, Any]:
    """Answer the question of `task`; the reward is 1 for the right number."""
    desk = Desk(task["seed"], **{"orders": 6} | task["options"])
    agent = Agent[None](
        name="Desk",
        instructions=RULES,
        model=OpenAIResponsesModel("policy", client),
        tools=[function_tool(desk.customers), function_tool(desk.orders_of), function_tool(desk.price_of)],
    )
    untraced = RunConfig(tracing_disabled=True)  # the SDK sends what is said to its maker otherwise
    try:
        result = await Runner.run(agent, desk.question, max_turns=MOST_ANSWERS, run_config=untraced)
    except (MaxTurnsExceeded, ModelBehaviorError):  # such as a call to a tool that is not there
        return desk.judged("")
    return desk.judged(str(result.final_output))


async def _main() -> None:
    async with AsyncOpenAI() as client:
        print(json.dumps(await run(json.load(sys.stdin), client)))


if __name__ == "__main__":
    asyncio.run(_main())
