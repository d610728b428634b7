"""Plain values from what users' code returns: NumPy's texts and numbers mean what they hold, anything else is refused.

An error names what was looked at and shows what was found. Not promised: that a value which passes makes sense.
"""

from __future__ import annotations

import json
import math
from numbers import Real
from typing import Any

import msgspec


class ContractError(ValueError):
    """An environment returned something that the contract does not allow."""


def plain_text(value: object, what: str) -> str:
    """`value` as a `str` that can be encoded; raises `ContractError`, which calls it `what`."""
    held = scalar(value)
    if not isinstance(held, str):
        raise ContractError(f"{what} must be text (str), found {shown(value)}")
    text = str.__str__(held)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ContractError(
            f"{what} holds half a character at {error.start} (a lone surrogate), which no tokenizer takes; "
            "decode bytes with errors='replace'"
        ) from error
    return text


def plain_number(value: object, what: str) -> float:
    """`value` as a finite `float`; raises `ContractError`, which calls it `what`."""
    held = scalar(value)
    if isinstance(held, bool) or not isinstance(held, Real):
        raise ContractError(f"{what} must be a number, found {shown(value)}")
    try:
        number = float(held)
    except OverflowError:  # an integer beyond the range of floats
        number = math.inf
    if not math.isfinite(number):
        raise ContractError(f"{what} must be finite, found {number}")
    return number


def plain_object(value: object, what: str) -> dict[str, Any]:
    """`value` as a `dict` of what JSON knows and msgpack takes; raises `ContractError`, which calls it `what`."""
    if not isinstance(value, dict):
        raise ContractError(f"{what} must be a dict, found {shown(value)}")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False, default=_scalar_for_json))
        msgspec.msgpack.encode(plain)  # lone surrogates and integers beyond 64 bits cannot travel
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ContractError(f"{what} must hold what JSON knows: {error}") from error
    return plain


def scalar(value: Any) -> Any:
    """What NumPy's scalars and arrays (or tensors) without dimensions hold; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def shown(value: object) -> str:
    """The type and the beginning of `value`, for an error."""
    try:
        text = repr(value)
    except Exception as error:  # ints of thousands of digits, a user's own types
        text = f"({type(error).__name__} when it is shown)"
    return f"{type(value).__name__} {text[:80]}"


def _scalar_for_json(value: object) -> object:
    held = scalar(value)
    if held is value:
        raise TypeError(f"{type(value).__name__} is not of it")
    return held
