"""Reading the bodies of requests: what all three APIs have in common.

Unknown fields are left alone, as the services that clients are written for do. A field that would change what is
sampled, and so what is trained on, is refused by name where the answer would not be what was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from milepost.actors.agents.calls import CallRefused, Request
from milepost.actors.agents.lineages import ChatMessage
from milepost.envs.plain_values import ContractError, plain_text

_ANCHOR_KEY = "milepost_anchor"
_TEXTS = ("text", "input_text", "output_text")


def refused(message: str) -> CallRefused:
    """The answer to a body that cannot be served."""
    return CallRefused(400, "invalid_request", message)


def request(
    body: Mapping[str, Any], messages: list[ChatMessage], tools: list[dict[str, Any]], header: str | None
) -> Request:
    """What a body asks for that shows `messages` and offers `tools`. Raises CallRefused where it shows none."""
    if not messages:
        raise refused("messages is empty: there is nothing to answer")
    options = body.get("stream_options")
    return Request(
        messages=messages,
        tools=tools,
        stream=bool(body.get("stream")),
        stream_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        anchor=_anchor(body, header),
    )


def mapping(value: object, where: str) -> dict[str, Any]:
    """`value` as a JSON object; raises CallRefused."""
    if not isinstance(value, dict):
        raise refused(f"{where} must be an object, found {type(value).__name__}")
    return value


def items(value: object, where: str) -> list[dict[str, Any]]:
    """`value` as a list of JSON objects; raises CallRefused."""
    if not isinstance(value, list):
        raise refused(f"{where} must be a list, found {type(value).__name__}")
    return [mapping(item, f"{where}[{k}]") for k, item in enumerate(value)]


def text(value: object, where: str) -> str:
    """Text of a message's content: a string, or parts that are text; raises CallRefused for any other part."""
    if value is None or isinstance(value, str):
        return value or ""
    parts = items(value, where)
    for k, part in enumerate(parts):
        if part.get("type") not in _TEXTS or not isinstance(part.get("text"), str):
            raise refused(f"{where}[{k}] has type {part.get('type')!r}; only text is served here")
    return "".join(part["text"] for part in parts)


def string(source: Mapping[str, Any], key: str, where: str) -> str:
    """The string `source[key]`; raises CallRefused."""
    value = source.get(key)
    if not isinstance(value, str):
        raise refused(f"{where}.{key} must be a string, found {type(value).__name__}")
    return value


def require_only(body: Mapping[str, Any], **served: tuple[object, ...]) -> None:
    """Raises CallRefused where a field is set to something else than what is served."""
    for key, values in served.items():
        if body.get(key) is not None and body[key] not in values:
            shown = " or ".join(repr(value) for value in values) or "nothing"
            raise refused(
                f"{key} = {repr(body[key])[:60]} is not served: an episode is sampled freely, as it is trained on; "
                f"served is {shown}, or leave it out"
            )


def _anchor(body: Mapping[str, Any], header: str | None) -> str | None:
    """The state as the program names it: by header, else by `metadata`. Raises CallRefused for what is no text."""
    metadata = body.get("metadata")
    named = header if header is not None else metadata.get(_ANCHOR_KEY) if isinstance(metadata, dict) else None
    if named is None:
        return None
    try:
        return plain_text(named, f"metadata.{_ANCHOR_KEY}")
    except ContractError as error:
        raise refused(str(error)) from error
