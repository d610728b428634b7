"""What every setting means: description, type, bounds, default, unit, and whether a resumed run may change it.

All of it is read off the models that check a configuration, so what is said is what is checked. Only units are stated
here. It knows nothing of any run: for the values of one, look into its `resolved.toml`.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.settings.config import RunConfig, is_free_on_resume
from milepost.cluster.settings.keys import nearest, tables
from milepost.learner.credit.strategies.registry import DEFAULT, SETTINGS

_COUNTED = (
    *("attempts", "bytes", "checkpoints", "engines", "episodes", "epochs", "groups", "iterations", "layers", "nats"),
    *("steps", "threads", "tokens", "turns", "updates", "workers"),
)
UNIT_WORDS: Final = {"s": "seconds", "gib": "GiB"} | {word: word for word in _COUNTED}
"""The last word of a key -> the unit of its value."""
UNITS: Final = {
    "run.groups_per_iteration": "groups",
    "run.group_size": "episodes",
    "run.max_staleness": "policy versions",
    "run.checkpoint_every": "iterations",
    "run.eval_every": "iterations",
    "model.warmup.vocab_size": "tokens",
    "model.warmup.max_positions": "tokens",
    "env.train_size": "tasks",
    "env.heldout_size": "tasks",
    "env.ood_size": "tasks",
    "engine.max_model_len": "tokens",
    "engine.max_num_seqs": "requests",
    "engine.tensor_parallel_size": "GPUs",
    "loss.max_length": "tokens",
    "entropy.penalty": "nats",
    "learner.ranks": "processes",
    "learner.minibatches": "steps",
    "learner.max_tokens_per_micro_batch": "tokens",
    "learner.parity_limit": "nats",
    "learner.stop_on_skipped": "steps",
    "critic.minibatches": "steps",
    "restarts.max_per_engine": "restarts",
    "restarts.max_per_worker": "restarts",
    "restarts.max_learner": "restarts",
    "collapse.baseline": "measurements",
    "collapse.patience": "measurements",
    "collapse.stop_patience": "iterations",
    "collapse.stop_evals": "evaluations",
    "collapse.stop_empty": "iterations",
    "collapse.information_every": "iterations",
    "actors.max_observation_chars": "characters",
    "tracing.text_chars": "characters",
    "credit.history": "states",
    "credit.depth": "backups",
}
"""Units of keys whose last word does not say it. What stands in neither table has none: shares, weights, seeds."""

_TYPES: Final = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    list[Any]: "list",
    Any: "any of these",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the configuration."""

    key: str
    """As `--set` takes it; `credit.modulators[].bonus` for a key of a list's tables."""
    description: str
    type: str
    choices: tuple[str | int, ...] | None
    """All values it may have; None where they are not listed."""
    bounds: str
    default: Any
    """None: unset."""
    is_required: bool
    unit: str | None
    is_free_on_resume: bool
    strategy: str | None
    """The credit strategy that it belongs to; None outside `credit`."""


@dataclass(frozen=True, slots=True)
class Section:
    """One table of the configuration."""

    title: str
    description: str
    settings: tuple[Setting, ...]


def sections(name: str = "") -> list[Section]:
    """The sections that `name` means, with their keys: all of them, one with those inside it, or a credit strategy.

    Raises ConfigError for a name that is none, with the nearest one that is.
    """
    parts, strategy = _parts(name)
    table = ".".join(parts)
    found = [
        section
        for title, kind in tables(RunConfig, strategy=strategy)
        if not table or title == table or title.startswith(f"{table}.")
        for section in _with_elements(title, kind, strategy)
    ]
    if not found:
        raise ConfigError(f"unknown {'key' if len(parts) > 1 else 'section'} {name}{_hint(parts, strategy)}")
    return found


def setting(name: str) -> tuple[Setting, list[Section]] | None:
    """The key that `name` means, and the tables it is a list of; None where it is no key."""
    parts, strategy = _parts(name)
    table, key = ".".join(parts[:-1]), parts[-1]
    for title, kind in tables(RunConfig, strategy=strategy):
        if title == table and key in kind.model_fields and not _is_table(kind.model_fields[key]):
            field = kind.model_fields[key]
            return _setting(title, key, field, strategy), list(_elements(title, key, field, strategy))
    return None


def strategies() -> list[tuple[str, str]]:
    """Every credit strategy with what it is, the default first."""
    names = sorted(SETTINGS, key=lambda name: name != DEFAULT)
    return [(name, SETTINGS[name].model_fields["strategy"].description or "") for name in names]


def _parts(name: str) -> tuple[list[str], str]:
    """The words of a name, and the strategy it is about: `credit.gigpo.gamma` is `credit.gamma` of `gigpo`."""
    parts = name.split(".")
    if len(parts) > 1 and parts[0] == "credit" and parts[1] in SETTINGS:
        return ["credit", *parts[2:]], parts[1]
    return parts, DEFAULT


def _hint(parts: Sequence[str], strategy: str) -> str:
    if parts[0] != "credit" or len(parts) == 1:
        return nearest(parts, RunConfig)
    known = {name: f"credit.{name}" for name in SETTINGS}
    for name in (*SETTINGS, DEFAULT, strategy):  # the last one that has a key is named
        known |= {key: f"credit.{name}.{key}" for key in SETTINGS[name].model_fields}
    close = difflib.get_close_matches(parts[1], known, n=1)
    of = f" of strategy {strategy}" if parts[1] in known else ""
    return f"{of}; did you mean {known[close[0]]}?" if close else nearest(parts, RunConfig, strategy=strategy)


def _with_elements(title: str, kind: type[BaseModel], strategy: str) -> Iterator[Section]:
    """A table, and the tables that its lists hold."""
    fields = {key: field for key, field in kind.model_fields.items() if not _is_table(field)}
    shown = f"{title}, strategy = {strategy}" if title == "credit" else title
    yield Section(shown, _summary(kind), tuple(_setting(title, key, field, strategy) for key, field in fields.items()))
    for key, field in fields.items():
        yield from _elements(title, key, field, strategy)


def _elements(title: str, key: str, field: FieldInfo, strategy: str) -> Iterator[Section]:
    for kind in _models(field.annotation):
        fields = kind.model_fields.items()
        shown = f"{title}.{key}[], name = {kind.model_fields['name'].default}"
        yield Section(
            shown, _summary(kind), tuple(_setting(f"{title}.{key}[]", name, f, strategy) for name, f in fields)
        )


def _setting(table: str, name: str, field: FieldInfo, strategy: str) -> Setting:
    key = f"{table}.{name}"
    kind, choices = _type(field.annotation)
    return Setting(
        key=key,
        description=field.description or "",
        type=kind,
        choices=choices,
        bounds=", ".join(_bounds(field)),
        default=None if field.is_required() else field.get_default(call_default_factory=True),
        is_required=field.is_required(),
        unit=UNITS.get(key, UNIT_WORDS.get(name.rpartition("_")[2])),
        is_free_on_resume=is_free_on_resume(key),
        strategy=strategy if key.startswith("credit.") else None,
    )


def _type(annotation: Any) -> tuple[str, tuple[str | int, ...] | None]:
    """A type in words, and the values of a choice."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0])
    if origin is Literal:
        return "one of", args
    if origin in (Union, types.UnionType):
        rest = [arg for arg in args if arg is not type(None)]
        if len(rest) < len(args):
            return f"{_type(rest[0])[0]}, or unset", _type(rest[0])[1]
        if list(_models(annotation)):
            return "a table", None
        return " or ".join(_type(arg)[0] for arg in rest), None
    if origin is dict:
        return f"table of {_type(args[1])[0]}", None
    if origin is tuple:
        kind, choices = _type(args[0])
        return f"list, each {kind}" if args[
            -1
        ] is Ellipsis else f"[{', '.join(_type(arg)[0] for arg in args)}]", choices
    return _TYPES[annotation], None


def _bounds(field: FieldInfo) -> Iterator[str]:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    for limit in field.metadata:
        for name, sign in signs.items():
            if hasattr(limit, name):
                yield f"{sign} {getattr(limit, name)}"
        if hasattr(limit, "multiple_of"):
            yield f"a multiple of {limit.multiple_of}"
        if hasattr(limit, "min_length"):
            yield "not empty"
        if getattr(limit, "pattern", None):
            yield f"matches {limit.pattern}"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a list or a choice of tables holds."""
    for arg in get_args(annotation):
        if isinstance(arg, type) and issubclass(arg, BaseModel):
            yield arg
        else:
            yield from _models(arg)


def _is_table(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _summary(kind: type[BaseModel]) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]
