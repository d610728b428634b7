"""A plain Python function as a tool: its schema from signature and docstring, its arguments checked before a call.

Types are pydantic's: `int`, `Literal["a", "b"]`, `list[str]`, `Annotated[int, Field(ge=0)]`, models of one's own. What
is said of an argument in the docstring (in Google's, NumPy's or Sphinx's style) becomes its description.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import docstring_parser
import pydantic

from milepost.envs.messages import ToolSchema


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
