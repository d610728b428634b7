"""The names of a configuration: its tables and keys, and which of them a misspelt name most likely means.

It knows types, not values. The table `credit` has the keys of one strategy at a time: every function is told which.
The table `env` stands for every `[[env]]`, too: `env.NAME.key` has the meaning of `env.key`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from milepost.cluster.settings.peers import hint
from milepost.envs.scenarios import ScenarioConfig
from milepost.learner.credit.strategies.registry import DEFAULT, SETTINGS


def tables(
    model: type[BaseModel], *, strategy: str = DEFAULT, prefix: str = ""
) -> Iterator[tuple[str, type[BaseModel]]]:
    """Dotted name and type of every table below `model`; a nested one comes after the one it lies in."""
    of_their_own = {} if prefix else {"credit": SETTINGS[strategy], "env": ScenarioConfig}
    for name, field in model.model_fields.items():
        kind = of_their_own.get(name, field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield f"{prefix}{name}", kind
            yield from tables(kind, strategy=strategy, prefix=f"{prefix}{name}.")


def unset(config: BaseModel, *, strategy: str) -> dict[str, list[tuple[str, str]]]:
    """Table -> name and description of its keys that have no value."""
    found: dict[str, list[tuple[str, str]]] = {}
    for table, kind in tables(type(config), strategy=strategy):
        values: object = config
        for part in table.split("."):
            values = getattr(values, part)
        each = values if isinstance(values, tuple) else (values,)
        for name, field in kind.model_fields.items():
            if any(getattr(one, name) is None for one in each):
                found.setdefault(table, []).append((name, field.description or ""))
    return found


def nearest(parts: Sequence[str], model: type[BaseModel], *, strategy: str = DEFAULT) -> str:
    """The end of a complaint about the name `parts`: what is most likely meant, or what is known there.

    It looks for what other programs call so, then for a name alike in the name's own section, then for the same name in
    any section.
    """
    if parts[0] != "credit" and (elsewhere := hint(parts)) is not None:
        return f"; {elsewhere}"
    known = list(model.model_fields)
    for table, kind in tables(model, strategy=strategy):
        known += [f"{table}.{name}" for name in kind.model_fields]
    section = ".".join(parts[:-1])
    beside = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    close = difflib.get_close_matches(parts[-1], beside, n=1)
    if close:
        return f"; did you mean {beside[close[0]]}?"
    same_name = [key for key in known if key.rpartition(".")[2] == parts[-1]]
    if same_name:
        return f"; did you mean {same_name[0]}?"
    return f"; known here: {', '.join(sorted(beside))}" if beside else ""
