"""Runs the agent with answers that are written down, without a model: python -m pytest -q."""

import asyncio
import json
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI
from stock_agent import TOOLS, Stock, run
from stock_desk import StockDesk

TASK = {"seed": 3, "options": {}}
STOCK = Stock(3)


def called(name: str, **arguments: str) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


async def played(answers: list[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """The result, and what the tools said."""
    results: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        newest = json.loads(request.content)["messages"][-1]
        results.extend([newest["content"]] * (newest["role"] == "tool"))
        choice = {"index": 0, "finish_reason": "stop", "message": answers.pop(0)}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "policy", "choices": [choice]}
        return httpx2.Response(200, json=body)

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    async with AsyncOpenAI(base_url="http://written.down/v1", api_key="none", http_client=http) as client:
        return await run(TASK, client), results


@pytest.mark.parametrize(("answer", "reward"), [(STOCK.pieces, 1.0), ("0", 0.0)])
def test_two_calls_and_the_right_number_earn_the_reward(answer: str, reward: float) -> None:
    shelf = STOCK.shelf_of[STOCK.thing]
    answers = [called("shelf_of", thing=STOCK.thing), called("pieces_on", shelf=shelf), said(answer)]
    result, results = asyncio.run(played(answers))
    assert result == {"reward": reward, "success": bool(reward)}
    assert results == [shelf, STOCK.pieces]


def test_a_call_of_what_is_not_there_is_told_what_is_wrong() -> None:
    _, results = asyncio.run(played([called("pieces_on", shelf="Z"), said("1")]))
    assert results == ["KeyError: 'Z'"]


def test_the_desk_that_the_small_model_imitates_has_the_same_tools() -> None:
    assert StockDesk().tools == TOOLS
