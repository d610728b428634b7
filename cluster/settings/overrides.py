"""`--set section.key=value`: one override laid over nested tables. Says nothing about which keys exist.

In a list of tables, as `[[env]]` makes one, a table goes by its name: `env.lake.share`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from milepost.cluster.base.exits import ConfigError


def apply(values: dict[str, Any], override: str) -> str:
    """Set one `a.b=c` in `values`, making tables on the way, and return its key.

    Raises ConfigError if the override has no `=`, an empty name, or goes through something that is not a table, or
    through a list that holds no table of that name.
    """
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: write key=value, e.g. --set run.seed=1")
    table: Any = values
    for part in parts[:-1]:
        table = _inner(table, part, override)
    if isinstance(table, list):
        raise ConfigError(f"--set {override}: {parts[-2]} holds several tables; name one of them: {_names(table)}")
    table[parts[-1]] = toml_value(text.strip())
    return ".".join(parts)


def _inner(table: Any, part: str, override: str) -> Any:
    """What `part` names in a table, or in a list of them."""
    if isinstance(table, list):
        named = [each for each in table if each.get("name") == part]
        if not named:
            raise ConfigError(f"--set {override}: there is no table called {part}; there are: {_names(table)}")
        return named[0]
    inner = table.setdefault(part, {})
    if not isinstance(inner, dict) and not _is_tables(inner):
        raise ConfigError(f"--set {override}: {part} is a value, not a section")
    return inner


def _is_tables(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _names(tables: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(str(table.get("name", "one without a name")) for table in tables)


def toml_value(text: str) -> Any:
    """The TOML value that `text` spells; what is not valid TOML is the string itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not a table, with its dotted key; of a list of named tables, the names and what they hold."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        elif _is_tables(value) and all("name" in each for each in value):
            yield f"{prefix}{name}", [each["name"] for each in value]
            for each in value:
                yield from leaves(each, f"{prefix}{name}.{each['name']}.")
        else:
            yield f"{prefix}{name}", value
