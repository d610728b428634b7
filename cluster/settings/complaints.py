"""What is wrong with a configuration, in lines: the file (or `--set`), the key, the reason, the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from milepost.cluster.settings.keys import nearest
from milepost.learner.credit.baseline import Baseline
from milepost.learner.credit.strategies.registry import DEFAULT, SETTINGS


def source(key: str, overridden: Sequence[str], path: Path) -> str:
    """Where a key's value comes from: `--set` if `overridden` names it, else the file at `path`."""
    return "--set" if any(key == other or key.startswith(f"{other}.") for other in overridden) else str(path)


def complaint(
    detail: ErrorDetails, model: type[BaseModel], values: Mapping[str, Any], *, overridden: Sequence[str], path: Path
) -> str:
    """One error that validating `values` as `model` met, as a line for people."""
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
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(SETTINGS)}"
    if named in get_args(Baseline):
        hint = f'of whole trajectories it is strategy = "starpo" with credit.baseline = "{named}"'
    return f"{source('credit.strategy', overridden, path)}: credit.strategy = {named!r}: no such strategy; {hint}"
