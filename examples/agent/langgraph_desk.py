"""The desk as a LangGraph program (`pip install langgraph langchain-openai`): a node for the model, one for the tools.

    echo '{"seed": 1, "options": {}}' | OPENAI_BASE_URL=http://127.0.0.1:8000/v1 python -m examples.agent.langgraph_desk

In a run it is `agent.path = "examples.agent.langgraph_desk:run"`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.errors import GraphRecursionError
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from openai import AsyncOpenAI
from pydantic import SecretStr

from examples.agent.desk import MOST_ANSWERS, RULES, Desk


async def run(task: dict[str, Any], client: AsyncOpenAI) -> dict[str, Any]:
    """Answer the question of `task`; the reward is 1 for the right number."""
    desk = Desk(task["seed"], **{"orders": 6} | task["options"])
    tools = [tool(desk.customers), tool(desk.orders_of), tool(desk.price_of)]
    model = ChatOpenAI(model="policy", base_url=str(client.base_url), api_key=SecretStr(client.api_key))
    clerk = model.bind_tools(tools)

    async def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await clerk.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", ask)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    asked = MessagesState(messages=[SystemMessage(RULES), HumanMessage(desk.question)])
    try:
        end = await graph.compile().ainvoke(asked, {"recursion_limit": 2 * MOST_ANSWERS})
    except GraphRecursionError:
        return desk.judged("")
    return desk.judged(str(end["messages"][-1].content))


async def _main() -> None:
    async with AsyncOpenAI() as client:
        print(json.dumps(await run(json.load(sys.stdin), client)))


if __name__ == "__main__":
    asyncio.run(_main())
