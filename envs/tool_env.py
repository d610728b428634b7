"""Typed Python functions as an environment with tools: write a class with a task, tools and a goal, and no protocol.

`start` says the task, `solved` whether it is done; the rest has defaults. An episode ends when it is solved, when the
policy answers without calling a tool, or after `max_steps`. A call of a tool that is not there, or whose arguments do
not fit its types, does nothing and is answered with what was wrong; so is one that raises `ToolError`. Types are
pydantic's (`int`, `Literal["a", "b"]`, `Annotated[int, Field(ge=0)]`), and what a docstring says of an argument, in
Google's, NumPy's or Sphinx's style, is its description. Not promised: that tools end: a call that hangs is the
environment's failure, after `actors.env_timeout_s`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, get_type_hints

import docstring_parser
import gymnasium
import pydantic
import pydantic_core
from gymnasium.spaces import Text

from milepost.envs.messages import AssistantMessage, Message, Said, ToolCall, ToolSchema, action_of


class Tool(Protocol):
    """What an environment can offer."""

    name: str
    schema: ToolSchema

    def checked(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """`arguments` as `run` takes them. Raises `ToolError` that says what does not fit."""
        ...

    def run(self, checked: Mapping[str, Any]) -> Any:
        """What the tool returns for arguments that were checked. Raises `ToolError`."""
        ...


_SPACE = Text(min_length=0, max_length=10_000, charset=string.printable)


class ToolError(Exception):
    """What a tool raises to tell the policy that it went wrong; anything else is the environment's failure."""


class TypedTool:
    """The tool that `function` is, under its own name.

    Raises TypeError for a parameter without a type, or one that JSON arguments cannot name (`*args`, `**kwargs`).
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name: str = function.__name__
        self._function = function
        told = docstring_parser.parse(inspect.getdoc(function) or "")
        about = {each.arg_name: each.description for each in told.params if each.description}
        self._model = pydantic.create_model(
            self.name,
            __config__=pydantic.ConfigDict(extra="forbid"),
            **{name: _field(self.name, parameter, about.get(name)) for name, parameter in _parameters(function)},
        )
        parameters = _without_titles(self._model.model_json_schema())
        description = "\n\n".join(part for part in (told.short_description, told.long_description) if part)
        self.schema: ToolSchema = {
            "type": "function",
            "function": {
                "name": self.name,
                "description": description,
                "parameters": {"properties": {}} | parameters | {"additionalProperties": False},
            },
        }

    def checked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`arguments` as the function takes them. Raises `ToolError` that says what does not fit."""
        try:
            checked = self._model.model_validate(dict(arguments))
        except pydantic.ValidationError as error:
            raise ToolError("; ".join(self._wrong(each) for each in error.errors())) from error
        return {name: getattr(checked, name) for name in type(checked).model_fields}

    def run(self, checked: Mapping[str, Any]) -> Any:
        """What the function returns for arguments that were checked; raises what it raises."""
        return self._function(**checked)

    def _wrong(self, error: Any) -> str:
        where = ".".join(str(part) for part in error["loc"])
        if error["type"] == "extra_forbidden":
            known = ", ".join(self._model.model_fields) or "none"
            return f"{self.name} has no argument {where[:64]!r}; it has: {known}"
        if error["type"] == "missing":
            return f"{self.name} needs the argument {where!r}"
        return f"argument {where!r} of {self.name}: {error['msg']}"


def _parameters(function: Callable[..., Any]) -> list[tuple[str, inspect.Parameter]]:
    hints = get_type_hints(function, include_extras=True)
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.replace(annotation=hints.get(p.name, inspect.Parameter.empty))) for p in found]


def _field(tool: str, parameter: inspect.Parameter, description: str | None) -> Any:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
        raise TypeError(f"tool {tool}: {parameter} cannot be named in a call; give it parameters with names")
    if parameter.annotation is parameter.empty:
        raise TypeError(f"tool {tool}: the parameter {parameter.name} has no type, such as {parameter.name}: str")
    default = ... if parameter.default is parameter.empty else parameter.default
    return (parameter.annotation, pydantic.Field(default, description=description))


def _without_titles(schema: Any) -> Any:
    """A schema without pydantic's titles, which say a name twice."""
    if isinstance(schema, dict):
        return {
            key: _without_titles(value)
            for key, value in schema.items()
            if not (key == "title" and isinstance(value, str))
        }
    return [_without_titles(each) for each in schema] if isinstance(schema, list) else schema


class ToolEnv(gymnasium.Env):  # type: ignore[misc]
    """Base class of environments whose tools are `functions`, mostly methods of its own.

    Draw chance from `self.np_random`. Raises TypeError for a function that cannot be a tool.
    """

    def __init__(self, functions: Sequence[Callable[..., Any]], *, max_steps: int = 10) -> None:
        self.observation_space = self.action_space = _SPACE
        self._tools: dict[str, Tool] = {}
        self.tools: list[ToolSchema] = []
        self.offer([TypedTool(function) for function in functions])
        self._max_steps = max_steps
        self._steps = 0
        self._results: list[tuple[str, str]] = []
        self._broken: list[str] = []

    def offer(self, tools: Sequence[Tool]) -> None:
        """Have these tools, and no others."""
        self._tools = {tool.name: tool for tool in tools}
        self.tools = [tool.schema for tool in tools]

    def called(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """What a tool returns; raises `ToolError`."""
        tool = self._tools[name]
        return tool.run(tool.checked(arguments))

    def broke(self, rule: str) -> None:
        """Say, from a tool, that its call breaks a rule of this name: evaluators count it, no reward changes by it."""
        self._broken.append(rule)

    def start(self) -> Said:
        """Set the task up, and say it: a text, or messages."""
        raise NotImplementedError(f"{type(self).__name__}.start sets a task up and says it")

    def solved(self, answer: str | None) -> bool:
        """Whether the task is done; asked after every turn, with the `answer` of one without a call, else with None."""
        raise NotImplementedError(f"{type(self).__name__}.solved says whether the task is done")

    def state(self) -> str:
        """The anchor: a name of the state, without history. Default: a hash of the last results, which is right where
        results show what matters; where tools change a world, say what it is like."""
        results = json.dumps(self._results, ensure_ascii=False).encode(errors="replace")
        return hashlib.blake2b(results, digest_size=12).hexdigest()

    def reward(self, solved: bool) -> float:
        """The reward of a turn. Default: 1 for the one that solves the task."""
        return float(solved)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The task, in the state that `start` makes."""
        super().reset(seed=seed, options=options)
        self._steps, self._results = 0, []
        return self.start(), {"anchor": self.state()}

    def step(self, message: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Do what `message`, an `AssistantMessage`, calls for; without a call it is the answer."""
        self._steps += 1
        self._broken = []
        if not message.tool_calls and not message.content.strip():
            said: Any = "Call a tool, or answer."
            return self._turn(said, None, valid=False, facts={})
        if not message.tool_calls:
            return self._turn("", message, valid=True, facts={}, answer=message.content.strip())
        done = [(call, *self._called(call)) for call in message.tool_calls]
        results = [(call.name, content) for call, content, how in done if how["fits"]]
        self._results = results or self._results
        said = [Message(role="tool", name=c.name, tool_call_id=c.id, content=content) for c, content, _ in done]
        fitting = AssistantMessage(tool_calls=tuple(call for call, _, how in done if how["fits"]))
        facts: dict[str, Any] = {"calls": [{"name": call.name} | how for call, _, how in done]}
        if self._broken:
            facts["violations"] = self._broken
        return self._turn(said, fitting, valid=bool(results), facts=facts)

    def _called(self, call: ToolCall) -> tuple[str, dict[str, bool]]:
        """What the tool says, and the facts: whether the call `fits`, else if the tool is `unknown`; if it met an
        `error`.
        """
        tool = self._tools.get(call.name)
        if tool is None:
            there = ", ".join(self._tools)
            return f"There is no tool {call.name[:64]!r}; the tools are: {there}", {"fits": False, "unknown": True}
        try:
            arguments = tool.checked(call.arguments)
        except ToolError as error:
            return f"Nothing was done: {error}", {"fits": False}
        try:
            result = tool.run(arguments)
        except ToolError as error:
            return f"Error: {error}", {"fits": True, "error": True}
        told = result if isinstance(result, str) else pydantic_core.to_json(result, bytes_mode="base64").decode()
        return told, {"fits": True}

    def _turn(
        self,
        said: Any,
        message: AssistantMessage | None,
        *,
        valid: bool,
        facts: dict[str, Any],
        answer: str | None = None,
    ) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        solved = valid and bool(self.solved(answer))
        info: dict[str, Any] = {"anchor": self.state(), "action_valid": valid, "success": solved}
        if valid and message is not None:
            info["action"] = action_of(message)
        if facts:
            info["tool"] = facts
        ended = solved or answer is not None
        return said, self.reward(solved), ended, not ended and self._steps >= self._max_steps, info
