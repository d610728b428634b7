"""Scores recorded groups under one or several strategies: which ones, with which settings, on which lines.

Every group is scored alone. What belongs to a batch stays out: filter, modulators and scaling. A source is read twice,
once to check all of it and once to score it; a file of groups is never held whole.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.settings.overrides import apply
from milepost.cluster.settings.own_credit import check_credit
from milepost.cluster.workbench import atif_groups
from milepost.cluster.workbench.atif_groups import Unfinished
from milepost.cluster.workbench.credit_page import ScoredGroup
from milepost.learner.credit import interchange
from milepost.learner.credit.assignment import Credit, CreditGroup, CreditTurn, Need, Strategy
from milepost.learner.credit.interchange import Malformed, Numbered
from milepost.learner.credit.strategies import registry as strategies

SHOWN_FAULTS = 10
_SHOWN_TASKS = 5


@dataclass(frozen=True, slots=True)
class Source:
    """A file of groups, or a file or folder of ATIF documents."""

    path: Path
    name: str
    """For people: the file or the run."""
    is_growing: bool
    """Whether a run writes it, and may have been killed in a line."""
    is_atif: bool = False

    @property
    def page(self) -> Path:
        """Where the graph page goes unless told otherwise."""
        return self.path / "credit.html" if self.path.is_dir() else self.path.with_name("credit.html")

    @property
    def unit(self) -> str:
        """What is counted where something is wrong, for people."""
        return "documents and groups" if self.is_atif else "lines"

    def told(self, found: Numbered | Malformed) -> str:
        """Where it stands and, of what is malformed, what is wrong with it."""
        if isinstance(found, Malformed):
            return str(found) if self.is_atif else f"{self.path}, {found}"
        return f"{self.path}, {f'group {found.group.task_id}' if self.is_atif else f'line {found.line}'}"


@dataclass(slots=True)
class Checked:
    """What the first reading of a source found."""

    num_lines: int = 0
    """Of groups, and of what is malformed."""
    unfinished: list[str] = field(default_factory=list)
    """ATIF documents of episodes that broke off: they are left out."""
    faults: dict[int, str] = field(default_factory=dict)
    """Line -> the first thing that is wrong with it."""
    first_tasks: list[str] = field(default_factory=list)
    has_task: bool = False
    """Whether a group of the task asked for is there."""


def chosen(names: str, overrides: Sequence[str]) -> dict[str, Strategy]:
    """The strategies of a comma-separated list, in its order, with `credit.key=value` laid over their settings.

    A name may be the dotted path of a class. A key goes to every strategy that has it. Raises ConfigError for an
    unknown strategy (with the nearest name), a key that none of them has, a value that one of them refuses, and a class
    that is no strategy.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise ConfigError(f"--strategy: name at least one of {', '.join(strategies.SETTINGS)}")
    known = [name for name in strategies.SETTINGS if name != "custom"]
    for name in wanted:
        if name not in known and not _is_path(name):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}, or package.module:Class"
            raise ConfigError(f"--strategy {name}: no such strategy; {hint}")
    values = _values(overrides, wanted)
    return {name: _built(name, values) for name in wanted}


def check(source: Source, chosen: dict[str, Strategy], *, task: str | None = None) -> Checked:
    """Read all of a source; find what is malformed or lacks what a strategy requires, and whether `task` is there.

    Raises ConfigError if the source can't be read.
    """
    checked = Checked()
    for found in _read(source):
        if isinstance(found, Unfinished):
            checked.unfinished.append(found.where)
            continue
        checked.num_lines += 1
        if isinstance(found, Malformed):
            checked.faults[found.line] = source.told(found)
            continue
        checked.has_task |= found.group.task_id == task
        if len(checked.first_tasks) <= _SHOWN_TASKS:
            checked.first_tasks.append(found.group.task_id)
        for name, strategy in chosen.items():
            if (lack := missing(found.group, strategy.requires)) is not None:
                checked.faults.setdefault(
                    found.line, f"{source.told(found)}: strategy {name} needs {lack}, which is not there"
                )
    return checked


def refuse(checked: Checked, source: Source, *, task: str | None, skip_bad: bool) -> None:
    """End the command if `task` is missing or something is wrong, unless bad lines may be skipped and some are left.

    Raises ConfigError with one line for each of the first faults.
    """
    if checked.num_lines == 0:
        raise ConfigError(f"{source.path}: holds no group")
    if task is not None and not checked.has_task:
        first = ", ".join(checked.first_tasks[:_SHOWN_TASKS])
        more = ", ..." if len(checked.first_tasks) > _SHOWN_TASKS else ""
        raise ConfigError(f"--group {task}: no such group in {source.path}; it begins with {first}{more}")
    lines = list(checked.faults.values())
    if not lines or (skip_bad and len(lines) < checked.num_lines):
        return
    hidden = len(lines) - SHOWN_FAULTS
    rest = [f"... and {hidden} more {source.unit}"] if hidden > 0 else []
    way_out = "nothing is left to score" if skip_bad else "nothing was scored; mend them, or add --skip-bad"
    raise ConfigError("\n".join([*lines[:SHOWN_FAULTS], *rest, way_out]))


def scored(source: Source, chosen: dict[str, Strategy], checked: Checked, *, skip_bad: bool) -> Iterator[ScoredGroup]:
    """Every good group of a source with its credits, in order.

    A strategy may refuse a group for its own reasons: then the line joins the faults if bad lines are to be skipped.
    Raises ConfigError otherwise.
    """
    for found in _read(source):
        if not isinstance(found, Numbered) or found.line in checked.faults:
            continue
        credits: dict[str, Credit] = {}
        for name, strategy in chosen.items():
            try:
                credits[name] = strategy.assign(found.group)
            except ValueError as error:
                fault = f"{source.told(found)}: strategy {name}: {error}"
                if not skip_bad:
                    raise ConfigError(f"{fault}; mend it, or add --skip-bad") from error
                checked.faults[found.line] = fault
                break
        else:
            yield ScoredGroup(found.group, credits)


def _values(overrides: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Key -> value of the overrides, each known to one of the strategies at least."""
    tables: dict[str, Any] = {}
    for override in overrides:
        key = apply(tables, override)
        section, name, *_ = [*key.split("."), ""]
        if section != "credit" or not name:
            raise ConfigError(f"--set {override}: only keys of [credit] can be set here, e.g. --set credit.beta=0.95")
        if name == "strategy":
            raise ConfigError(f"--set {override}: choose strategies by --strategy")
        if name == "modulators":
            raise ConfigError(f"--set {override}: modulators work on batches of a run; groups are scored alone here")
        known = {key for chosen in names for key in _fields(chosen)}
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean credit.{close[0]}?" if close else f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"--set {override}: no chosen strategy has the key {name}; {hint}")
    return dict(tables.get("credit", {}))


def _is_path(name: str) -> bool:
    return ":" in name


def _fields(name: str) -> list[str]:
    """The keys that a strategy's settings have besides its name."""
    kind = strategies.SETTINGS["custom" if _is_path(name) else name]
    return [key for key in kind.model_fields if key not in ("strategy", "path")]


def _built(name: str, values: dict[str, Any]) -> Strategy:
    mine = {key: value for key, value in values.items() if key in _fields(name)}
    named = {"path": name} if _is_path(name) else {"strategy": name}
    try:
        config = strategies.settings(**named, **mine)
        check_credit(config)
        return strategies.build(config)
    except ValidationError as error:
        lines = []
        for detail in error.errors(include_url=False):
            key = ".".join(["credit", *(str(part) for part in detail["loc"] if part not in (name, "custom"))])
            lines.append(f"--set: {key} of strategy {name}: {detail['msg'].removeprefix('Value error, ')}")
        raise ConfigError("\n".join(lines)) from error


def _read(source: Source) -> Iterator[Numbered | Malformed | Unfinished]:
    try:
        if source.is_atif:
            yield from atif_groups.read(source.path)
        else:
            yield from interchange.read(source.path, is_growing=source.is_growing)
    except OSError as error:
        raise ConfigError(f"{source.path}: {error.strerror}; give a file that can be read") from error


def missing(group: CreditGroup, requires: frozenset[Need]) -> str | None:
    """The first field that a strategy which `requires` it needs and a turn lacks, by its place in the group."""
    if not requires:
        return None
    for i, trajectory in enumerate(group.trajectories):
        for t, turn in enumerate(trajectory.turns):
            for need in sorted(requires):
                if not _has(turn, need):
                    return f"trajectories[{i}].turns[{t}].{'value' if need == 'critic' else need}"
    return None


def _has(turn: CreditTurn, need: Need) -> bool:
    if need == "critic":
        return turn.value is not None or turn.token_values is not None
    return {"entropy": turn.entropy, "history_gain": turn.history_gain, "progress": turn.progress}[need] is not None
