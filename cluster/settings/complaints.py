"""What is wrong with a configuration, in lines that name the file (or `--set`), the key, the reason and the way out.

pydantic finds what is wrong; here it is only put into words.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from milepost.cluster.settings.keys import nearest
from milepost.cluster.settings.overrides import leaves
from milepost.cluster.settings.peers import hint
from milepost.learner.credit.baseline import Baseline
from milepost.learner.credit.strategies.registry import DEFAULT, SETTINGS


def complaints(
    error: ValidationError, model: type[BaseModel], values: Mapping[str, Any], *, overridden: Sequence[str], path: Path
) -> Iterator[str]:
    """A line for each thing that is wrong with `values` for `model`, of the file `path` and the `overridden` keys."""
    for detail in error.errors(include_url=False):
        for told in _key_by_key(detail):
            yield _complaint(told, model, values, overridden=overridden, path=path)


def source(key: str, overridden: Sequence[str], path: Path) -> str:
    """Where `key`, a value or a section, was set: `--set` if an override named it or something in it, else the file."""
    is_overridden = any(key == other or key.startswith(f"{other}.") for other in overridden)
    return "--set" if is_overridden or any(other.startswith(f"{key}.") for other in overridden) else str(path)


def _key_by_key(detail: ErrorDetails) -> list[ErrorDetails]:
    """An unknown section by its keys, where other programs have them; everything else as it is."""
    section, values = ".".join(map(str, detail["loc"])), detail["input"]
    if detail["type"] != "extra_forbidden" or not isinstance(values, dict):
        return [detail]
    keys = [key.split(".") for key, _ in leaves(values, f"{section}.")]
    return [{**detail, "loc": tuple(key), "input": None} for key in keys if hint(key)] or [detail]


def _complaint(
    detail: ErrorDetails, model: type[BaseModel], values: Mapping[str, Any], *, overridden: Sequence[str], path: Path
) -> str:
    parts = [str(part) for part in detail["loc"]]
    if detail["type"] == "union_tag_invalid":
        return _unknown_strategy(detail, path, overridden)
    strategy = env = None
    if len(parts) > 1 and parts[0] in ("credit", "env"):
        member = parts.pop(1)  # pydantic names the union's member
        strategy = member if parts[0] == "credit" else None
        env = _env_name(parts.pop(1), values) if member == "several" and len(parts) > 1 else None
    key = ".".join([*parts[:1], *([env] if env else []), *parts[1:]])
    where = source(key, overridden, path)
    if detail["type"] == "extra_forbidden":
        of = f" of strategy {strategy}" if strategy else ""
        near = nearest(parts, model, strategy=strategy or DEFAULT)
        return f"{where}: unknown key {key}{of}{near.replace('mean env.', f'mean env.{env}.') if env else near}"
    reason = detail["msg"].removeprefix("Value error, ")
    is_value = parts and not isinstance(detail["input"], dict | list)
    said = f"{key} = {detail['input']!r}: " if is_value else f"{key}: " if key else ""
    return f"{where}: {said}{reason[:1].lower()}{reason[1:]}"


def _env_name(number: str, values: Mapping[str, Any]) -> str:
    """How `--set` calls the `[[env]]` table of this number, from 0."""
    table = values["env"][int(number)]
    return str(table.get("name") or number) if isinstance(table, dict) else number


def _unknown_strategy(detail: ErrorDetails, path: Path, overridden: Sequence[str]) -> str:
    named = detail["ctx"]["tag"]
    close = difflib.get_close_matches(named, SETTINGS, n=1)
    way_out = f"did you mean {close[0]}?" if close else f"known: {', '.join(SETTINGS)}"
    if named in get_args(Baseline):
        way_out = f'of whole trajectories it is strategy = "starpo" with credit.baseline = "{named}"'
    return f"{source('credit.strategy', overridden, path)}: credit.strategy = {named!r}: no such strategy; {way_out}"
