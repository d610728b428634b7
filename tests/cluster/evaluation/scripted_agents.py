"""Agents that play the refund desk by a script: a sound one, and four that a score can be fooled by.

Episodes are made as a run stores them: rows of turns, with the environment's own anchors, actions and facts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from examples.refund_desk import RefundDesk
from milepost.cluster.trajectories.reader import Episode as Recorded
from milepost.envs import chance
from milepost.envs.contract import observe_reset, observe_step
from milepost.envs.messages import AssistantMessage, ToolCall

LONG = "First I look at the order because it came broken, therefore I should refund it."
DONE = "The order is refunded."
Move = tuple[str, str, dict[str, Any]]
"""What is thought, and the tool with its arguments; an answer has the tool "" and its text among the arguments."""


def script(agent: str, order: int) -> Iterator[Move]:
    """The moves of an agent; what is written to a tool's results would change none of them."""
    look, read, refund = ("look_up", {"order": order}), ("read_policy", {}), ("refund", {"order": order})
    ways: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "sound": [look, read, refund],
        "idle": [],
        "lucky": [look, ("ask_colleague", {"order": order}), ("look_up", {"order": order, "detail": "all"})],
        "looping": [("look_up", {"order": order, "detail": detail}) for detail in ("short", "long", "all") * 2],
        "rule breaker": [look, refund],
    }
    for name, arguments in ways[agent]:
        yield ("" if agent == "sound" else LONG), name, arguments
    yield ("" if agent == "sound" else LONG), "", {"text": DONE}


def played(agent: str, *, seed: int = 900001, luck: int = 0) -> Recorded:
    """One episode of an agent, as a run stores it; `luck` draws what the environment decides after the start."""
    env = RefundDesk()
    reset = observe_reset(chance.reset(env, seed=seed, later=luck), env)
    anchor, said, turns, steps = reset.anchor, reset.observation, [], []
    for number, (thought, name, arguments) in enumerate(script(agent, env.order)):
        calls = (ToolCall(id=str(number), name=name, arguments=arguments),) if name else ()
        message = AssistantMessage(content=arguments.get("text", ""), tool_calls=calls)
        steps.append(step := observe_step(env.step(message), message.content))
        written = f"<think>{thought}</think>" * bool(thought) + (f"{name} {json.dumps(arguments)}" if name else DONE)
        turns.append(_row(number, said, written, anchor, step))
        anchor, said = step.anchor, step.observation
    outcome = "success" if steps[-1].success else "failure" if steps[-1].terminated else "truncated"
    return Recorded({"outcome": outcome, "cohort": "usual"}, turns)


def _row(number: int, said: str, written: str, anchor: str, step: Any) -> dict[str, Any]:
    return {
        "turn": number,
        "prompt": f"<|im_start|>user\n{said}<|im_end|>",
        "response": f"{written}<|im_end|>",
        "tool": None if step.tool is None else json.dumps(step.tool),
        "action": step.action,
        "anchor": anchor,
        "next_anchor": step.anchor,
        "progress": step.progress,
        "continues": number > 0,
        "prompt_ids": [1] * len(said.split()),
        "response_ids": [2] * len(written.split()),
    }
