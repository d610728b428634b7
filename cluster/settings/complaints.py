"""What is wrong with a configuration, in lines that name the file (or `--set`), the key, the reason and the way out.

pydantic finds what is wrong; here it is only put into words.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from milepost.cluster.settings.keys import nearest
from milepost.cluster.settings.overrides import leaves
from milepost.cluster.settings.peers import hint
from milepost.learner.credit.baseline import Baseline
from milepost.learner.credit.strategies.registry import DEFAULT, SETTINGS


def complaints(error: ValidationError, model: type[BaseModel], overridden: Sequence[str], path: Path) -> Iterator[str]:
    """A line for each thing that is wrong with values for `model` from the file `path` and the `overridden` keys."""
    for detail in error.errors(include_url=False):
        for told in _key_by_key(detail):
            yield _complaint(told, model, overridden, path)


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


def _complaint(detail: ErrorDetails, model: type[BaseModel], overridden: Sequence[str], path: Path) -> str:
    parts = [str(part) for part in detail["loc"]]
    if detail["type"] == "union_tag_invalid":
        return _unknown_strategy(detail, path, overridden)
    strategy = parts.pop(1) if len(parts) > 1 and parts[0] == "credit" else None  # pydantic names the union's member
    key = ".".join(parts)
    where_set = source(key, overridden, path)
    if detail["type"] == "extra_forbidden":
        of = f" of strategy {strategy}" if strategy else ""
        return f"{where_set}: unknown key {key}{of}{nearest(parts, model, strategy=strategy or DEFAULT)}"
    reason = detail["msg"].removeprefix("Value error, ")
    where = (
        f"{key} = {detail['input']!r}: "
        if parts and not isinstance(detail["input"], dict)
        else f"{key}: "
        if key
        else ""
    )
    return f"{where_set}: {where}{reason[:1].lower()}{reason[1:]}"


def _unknown_strategy(detail: ErrorDetails, path: Path, overridden: Sequence[str]) -> str:
    named = detail["ctx"]["tag"]
    close = difflib.get_close_matches(named, SETTINGS, n=1)
    way_out = f"did you mean {close[0]}?" if close else f"known: {', '.join(SETTINGS)}"
    if named in get_args(Baseline):
        way_out = f'of whole trajectories it is strategy = "starpo" with credit.baseline = "{named}"'
    return f"{source('credit.strategy', overridden, path)}: credit.strategy = {named!r}: no such strategy; {way_out}"
