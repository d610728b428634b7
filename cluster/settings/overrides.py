"""`--set section.key=value`: one override laid over nested tables. Says nothing about which keys exist."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from milepost.cluster.base.exits import ConfigError


def apply(values: dict[str, Any], override: str) -> str:
    """Set one `a.b=c` in `values`, making tables on the way, and return its key.

    Raises ConfigError if the override has no `=`, an empty name, or goes through something that is not a table.
    """
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: write key=value, e.g. --set run.seed=1")
    table = values
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override}: {part} is a value, not a section")
    table[parts[-1]] = toml_value(text.strip())
    return ".".join(parts)


def toml_value(text: str) -> Any:
    """The TOML value that `text` spells; what is not valid TOML is the string itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not a table, with its dotted key."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
