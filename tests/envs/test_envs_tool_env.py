"""Typed functions as an environment with tools: schemas, checked arguments, results, the end of an episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from milepost.envs.messages import AssistantMessage, ToolCall
from milepost.envs.tool_env import ToolEnv, ToolError, TypedTool


@dataclass
class Order:
    number: int
    state: str


class Shop(ToolEnv):
    def __init__(self, *, max_steps: int = 4) -> None:
        super().__init__([self.find, self.refund], max_steps=max_steps)

    def start(self) -> str:
        self.refunded: list[int] = []
        return "Refund order 7, then say done."

    def find(self, number: int, detail: Literal["short", "long"] = "short") -> Order:
        """Find an order.

        It must exist.

        Args:
            number: The order's number.
            detail: How much to say.
        """
        if number > 9:
            raise ToolError("no such order")
        return Order(number, detail)

    def refund(self, number: Annotated[int, Field(ge=0)]) -> str:
        """Pay an order back."""
        if number in self.refunded:
            self.broke("paid twice")
        self.refunded.append(number)
        return "paid"

    def solved(self, answer: str | None) -> bool:
        return answer == "done" and self.refunded == [7]


def calls(*named: tuple[str, dict[str, Any]]) -> AssistantMessage:
    return AssistantMessage(
        tool_calls=tuple(ToolCall(id=f"call{i:05d}", name=n, arguments=a) for i, (n, a) in enumerate(named))
    )


def begun(**options: Any) -> Shop:
    env = Shop(**options)
    env.reset(seed=0)
    return env


def test_a_schema_is_signature_and_docstring() -> None:
    find, refund = Shop().tools
    assert find == {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Find an order.\n\nIt must exist.",
            "parameters": {
                "type": "object",
                "properties": {
                    "number": {"type": "integer", "description": "The order's number."},
                    "detail": {
                        "type": "string", "enum": ["short", "long"], "default": "short",
                        "description": "How much to say.",
                    },
                },
                "required": ["number"],
                "additionalProperties": False,
            },
        },
    }  # fmt: skip
    assert refund["function"]["parameters"]["properties"] == {"number": {"type": "integer", "minimum": 0}}


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (lambda x: x, "the parameter x has no type"),
        (lambda *x: x, "cannot be named in a call"),
        (lambda **x: x, "cannot be named in a call"),
    ],
)
def test_a_function_that_no_schema_describes_is_no_tool(function: Any, complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        TypedTool(function)


def test_results_answer_their_calls() -> None:
    said, reward, terminated, truncated, info = begun().step(
        calls(("find", {"number": 7}), ("refund", {"number": "7"}), ("find", {"number": 10}))
    )
    assert [(m.tool_call_id, m.name, m.content) for m in said] == [
        ("call00000", "find", '{"number":7,"detail":"short"}'.replace("detail", "state")),
        ("call00001", "refund", "paid"),
        ("call00002", "find", "Error: no such order"),
    ]
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info["action"] == 'find {"number": 7}\nrefund {"number": "7"}\nfind {"number": 10}'
    assert info["action_valid"]


@pytest.mark.parametrize(
    ("name", "arguments", "what"),
    [
        ("pay", {}, "There is no tool 'pay'; the tools are: find, refund"),
        ("find", {}, "Nothing was done: find needs the argument 'number'"),
        ("find", {"number": "seven"}, "Nothing was done: argument 'number' of find: Input should be a valid integer"),
        ("find", {"number": 1, "detail": "all"}, "argument 'detail' of find: Input should be 'short' or 'long'"),
        ("find", {"number": 1, "colour": "red"}, "find has no argument 'colour'; it has: number, detail"),
        ("refund", {"number": -1}, "argument 'number' of refund: Input should be greater than or equal to 0"),
    ],
)
def test_a_call_that_does_not_fit_does_nothing_and_is_told_why(name: str, arguments: Any, what: str) -> None:
    env = begun()
    before = env.step(calls(("refund", {"number": 3})))[-1]["anchor"]
    (said,), reward, terminated, _, info = env.step(calls((name, arguments)))
    assert what in said.content
    assert (env.refunded, reward, terminated) == ([3], 0.0, False)
    assert (info["action_valid"], info["anchor"]) == (False, before)
    assert "action" not in info


def test_of_several_calls_those_that_fit_are_the_action() -> None:
    env = begun()
    *_, info = env.step(calls(("pay", {}), ("refund", {"number": 7})))
    assert (info["action"], info["action_valid"]) == ('refund {"number": 7}', True)
    unknown = {"name": "pay", "fits": False, "unknown": True}
    assert info["tool"] == {"calls": [unknown, {"name": "refund", "fits": True}]}


def test_the_facts_name_a_call_that_met_an_error_and_the_rules_that_a_turn_broke() -> None:
    env = begun()
    *_, info = env.step(calls(("find", {"number": 12}), ("refund", {"number": 7})))
    assert info["tool"]["calls"] == [{"name": "find", "fits": True, "error": True}, {"name": "refund", "fits": True}]
    assert "violations" not in info["tool"]
    _, reward, *_, info = env.step(calls(("refund", {"number": 7})))
    assert (info["tool"]["violations"], reward) == (["paid twice"], 0.0)
    assert "violations" not in env.step(calls(("refund", {"number": 8})))[-1]["tool"]


@pytest.mark.parametrize(("order", "solved"), [(7, True), (8, False)])
def test_an_answer_ends_the_episode_and_is_judged(order: int, solved: bool) -> None:
    env = begun()
    env.step(calls(("refund", {"number": order})))
    _, reward, terminated, truncated, info = env.step(AssistantMessage(content=" done\n"))
    assert (reward, terminated, truncated, info["success"]) == (float(solved), True, False, solved)
    assert info["action"] == "done"


def test_a_message_that_says_nothing_is_no_answer() -> None:
    said, _, terminated, _, info = begun().step(AssistantMessage(reasoning="Hm.", content="\n"))
    assert (said, terminated, info["action_valid"]) == ("Call a tool, or answer.", False, False)


def test_an_episode_is_cut_off_after_its_steps() -> None:
    env = begun(max_steps=2)
    assert [env.step(calls(("find", {"number": 1})))[3] for _ in range(2)] == [False, True]


def test_equal_results_are_one_state_however_they_were_come_by() -> None:
    one, other, third = begun(), begun(), begun()
    one.step(calls(("find", {"number": 1})))
    other.step(calls(("find", {"number": 5})))
    assert one.state() != other.state()
    one.step(calls(("refund", {"number": 1})))
    third.step(calls(("refund", {"number": 1})))
    assert one.state() == third.state()


def test_what_a_tool_raises_beside_a_tool_error_is_the_environments_failure() -> None:
    class Broken(Shop):
        def refund(self, number: int) -> str:
            raise KeyError(number)

    env = Broken()
    env.reset(seed=0)
    with pytest.raises(KeyError):
        env.step(calls(("refund", {"number": 7})))
