"""Small environments of verifiers: sums in one answer, a number found in several, sums by a tool."""

from __future__ import annotations

import re
import threading
from typing import Any

import verifiers as vf
from datasets import Dataset

FREED = threading.Event()


def load_environment(kind: str = "single", **args: Any) -> vf.Environment:
    """What `vf.load_environment` asks of a module."""
    return {"single": single, "several": several, "by_tool": by_tool, "blocking": blocking}[kind](**args)


def sums(rows: int) -> Dataset:
    return Dataset.from_list([{"question": f"{k} + 1 =", "answer": str(k + 1)} for k in range(rows)])


def said(completion: Any) -> str:
    return str(completion[-1].content or "").strip()


async def is_right(completion: Any, answer: str) -> float:
    return float(said(completion) == answer)


def single(rows: int = 20, held_out: int = 0) -> vf.Environment:
    evaluation = Dataset.from_list([{"question": "held out", "answer": "1"}] * held_out) if held_out else None
    return vf.SingleTurnEnv(
        dataset=sums(rows), eval_dataset=evaluation, system_prompt="Add.", rubric=vf.Rubric(funcs=[is_right])
    )


class HigherLower(vf.MultiTurnEnv):  # type: ignore[misc]
    async def env_response(self, messages: Any, state: Any, **_: Any) -> Any:
        guess = re.fullmatch(r"\d+", said(messages))
        secret = int(state["answer"])
        if guess and int(guess[0]) == secret:
            state["final_env_response"] = [{"role": "user", "content": "Found."}]
            return state["final_env_response"]
        word = "No number." if not guess else "Higher." if int(guess[0]) < secret else "Lower."
        return [{"role": "user", "content": word}]


async def found(state: Any) -> float:
    return float(state.get("final_env_response") is not None) / len(state["trajectory"])


def several(max_turns: int = 4) -> vf.Environment:
    """The package ends a rollout before it answers the last turn: the third guess is judged, a fourth is not."""
    return HigherLower(
        dataset=Dataset.from_list([{"question": "1 to 7", "answer": str(k % 7 + 1)} for k in range(20)]),
        max_turns=max_turns,
        rubric=vf.Rubric(funcs=[found]),
    )


async def add(a: int, b: int) -> int:
    """Add."""
    return a + b


def by_tool() -> vf.Environment:
    async def used_and_right(completion: Any, answer: str) -> float:
        return float(any(each.role == "tool" for each in completion) and said(completion) == answer)

    return vf.ToolEnv(dataset=sums(20), tools=[add], max_turns=3, rubric=vf.Rubric(funcs=[used_and_right]))


class Blocking(HigherLower):
    async def env_response(self, messages: Any, state: Any, **_: Any) -> Any:
        FREED.wait(60)
        return await super().env_response(messages, state)


def blocking() -> vf.Environment:
    return Blocking(dataset=sums(20), max_turns=3, rubric=vf.Rubric(funcs=[is_right]))


def group_scored() -> vf.Environment:
    async def best(completions: Any) -> list[float]:
        return [1.0] * len(completions)

    return vf.SingleTurnEnv(dataset=sums(20), rubric=vf.Rubric(funcs=[best]))
