"""Observations as chat messages, and tools as schemas: typed where they enter, refused with what is wrong."""

from typing import Any

import gymnasium
import pytest

from milepost.envs.contract import observe_reset, observe_step
from milepost.envs.messages import AssistantMessage, Message, ToolCall, action_of
from milepost.envs.plain_values import ContractError

LOOK_UP: dict[str, Any] = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


class WithTools(gymnasium.Env):  # type: ignore[misc]
    def __init__(self, tools: object) -> None:
        self.tools = tools


def test_messages_are_an_observation_whose_text_is_their_contents() -> None:
    start = observe_reset(([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go."}], {}))
    assert start.said == (Message(role="system", content="Be brief."), Message(role="user", content="Go."))
    assert start.observation == start.anchor == "Be brief.\nGo."
    result = {"role": "tool", "content": "7", "name": "look_up", "tool_call_id": "call00000"}
    step = observe_step(([result, Message(role="user", content="And?")], 0.0, False, False, {}), "x")
    assert step.said == (Message(**result), Message(role="user", content="And?"))
    assert step.observation == "7\nAnd?"


def test_a_text_stays_a_text() -> None:
    assert observe_reset(("Go.", {})).said == "Go."


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "reset: the observation is a list without messages"),
        (["Go."], "reset: message 0 must be a dict with role and content, found str 'Go.'"),
        ([{"role": "assistant", "content": "x"}], "has the role 'assistant'; an environment has system, user, tool"),
        ([{"role": "user"}], "reset: message 0 has no content"),
        ([{"role": "user", "content": 7}], "reset: message 0: content must be text"),
        ([{"role": "user", "content": "\ud800"}], "reset: message 0: content holds half a character"),
        ([{"role": "user", "content": "x", "images": "y"}], "has the key 'images'; a message has role, content, name"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "message 1 has the role system"),
    ],
)
def test_messages_that_no_template_could_take_are_refused(messages: Any, complaint: str) -> None:
    with pytest.raises(ContractError, match=complaint):
        observe_reset((messages, {}))


def test_a_step_says_nothing_as_the_system() -> None:
    with pytest.raises(ContractError, match="step: message 0 has the role system, which only the first of reset"):
        observe_step(([{"role": "system", "content": "x"}], 0.0, False, False, {}), "x")


def test_tools_come_from_the_attribute_of_the_environment_under_wrappers_or_from_the_info() -> None:
    env = WithTools([LOOK_UP])
    assert [tool["function"]["name"] for tool in observe_reset(("Go.", {}), env).tools] == ["look_up"]
    assert observe_reset(("Go.", {}), gymnasium.Wrapper(env)).tools == observe_reset(("Go.", {}), env).tools
    other = LOOK_UP | {"function": {"name": "other"}}
    (told,) = observe_reset(("Go.", {"tools": [other]}), env).tools
    assert told["function"] == {"name": "other", "parameters": {"type": "object", "properties": {}}}
    assert observe_reset(("Go.", {"tools": []}), env).tools == ()


def test_an_attribute_that_is_called_tools_and_is_none_declares_nothing() -> None:
    for tools in (["axe", "rope"], {"axe": 1}, None, lambda: None):
        assert observe_reset(("Go.", {}), WithTools(tools)).tools == ()


@pytest.mark.parametrize(
    ("tools", "complaint"),
    [
        (["axe"], r"tools\[0\] must be a dict"),
        ([{"name": "axe"}], r'tools\[0\] must be {"type": "function", "function": {...}}'),
        ([LOOK_UP, LOOK_UP], r"two have one name, \['look_up', 'look_up'\]"),
        ([LOOK_UP | {"function": {"name": ""}}], r"tools\[0\]: function.name must be text"),
        ([LOOK_UP | {"function": {"name": "a", "parameters": []}}], r"function.parameters must be a JSON schema"),
        ([LOOK_UP | {"x": float("nan")}], r"tools\[0\] must hold what JSON knows"),
    ],
)
def test_tools_that_are_no_schemas_are_refused(tools: Any, complaint: str) -> None:
    with pytest.raises(ContractError, match=complaint):
        observe_reset(("Go.", {"tools": tools}))


def test_equal_calls_are_one_action_whatever_their_ids_and_the_order_of_their_arguments() -> None:
    one = ToolCall(id="call00000", name="move", arguments={"x": 1, "y": 2})
    other = ToolCall(id="call00009", name="move", arguments={"y": 2, "x": 1})
    assert action_of(AssistantMessage(tool_calls=(one,))) == action_of(AssistantMessage(tool_calls=(other,)))
    assert action_of(AssistantMessage(tool_calls=(one,), content="so")) == 'move {"x": 1, "y": 2}'
    assert action_of(AssistantMessage(content=" 7 \n")) == "7"
