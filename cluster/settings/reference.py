"""`milepost config`: the settings as tables for people, or as JSON for programs.

A terminal gets tables that fit into it; elsewhere every key is one line with its whole name, for grep and the like.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from milepost.cluster.settings import explain
from milepost.cluster.settings.explain import Section, Setting

_PLAIN_WIDTH = 10_000


def show(name: str, *, as_json: bool) -> None:
    """Print what `name` means: a section, a key, or everything if it is empty. Raises ConfigError if it is unknown."""
    out = Console(highlight=False)
    if not out.is_terminal:
        out.width = _PLAIN_WIDTH
    one = explain.setting(name)
    sections = explain.sections(name) if one is None else one[1]
    settings = [] if one is None else [one[0]]
    if as_json:
        print(_json(settings, sections))
        return
    with out.capture() as page:
        for setting in settings:
            out.print(_in_full(setting))
        for section in sections:
            out.print(*_table(section, out), sep="")
        if name in ("", "credit"):
            out.print(*_strategies(out), sep="")
    print("\n".join(line.rstrip() for line in page.get().lstrip().splitlines()))


def _json(settings: Sequence[Setting], sections: Sequence[Section]) -> str:
    found = [*settings, *(setting for section in sections for setting in section.settings)]
    return json.dumps([asdict(setting) for setting in found], indent=2)


def _in_full(setting: Setting) -> RenderableType:
    kind = f"{setting.type} {', '.join(map(str, setting.choices))}" if setting.choices else setting.type
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("key", Text(setting.key, style="bold"))
    if setting.strategy:
        table.add_row("strategy", setting.strategy)
    table.add_row("meaning", Text(setting.description))
    table.add_row("type", Text(f"{kind}; {setting.bounds}" if setting.bounds else kind))
    table.add_row("default", Text(_default(setting)))
    table.add_row("unit", setting.unit or "none")
    table.add_row("on --resume", "may change" if setting.is_free_on_resume else "stays as the run began")
    return table


def _table(section: Section, out: Console) -> Iterator[RenderableType]:
    table = Table(box=box.SIMPLE_HEAD if out.is_terminal else None, pad_edge=False, header_style="bold")
    table.add_column("key", overflow="fold")
    table.add_column("default", overflow="fold", max_width=16 if out.is_terminal else None)
    table.add_column("unit", no_wrap=True)
    table.add_column("meaning", overflow="fold")
    for setting in section.settings:
        key = setting.key.rpartition(".")[2] if out.is_terminal else setting.key
        table.add_row(Text(key), Text(_default(setting)), setting.unit or "", Text(setting.description))
    yield _title(section.title, section.description)
    yield table


def _strategies(out: Console) -> Iterator[RenderableType]:
    table = Table(box=box.SIMPLE_HEAD if out.is_terminal else None, pad_edge=False, header_style="bold")
    table.add_column("strategy")
    table.add_column("meaning", overflow="fold")
    for number, (name, meaning) in enumerate(explain.strategies()):
        table.add_row(name if number else f"{name} (default)", Text(meaning))
    yield _title(
        "credit.strategy", "The other keys of [credit] are those of the strategy; e.g. milepost config credit.gigpo"
    )
    yield table


def _title(name: str, description: str) -> RenderableType:
    return Text.assemble("\n", (f"[{name}]", "bold"), f"  {description}")


def _default(setting: Setting) -> str:
    """A default as TOML writes it."""
    if setting.is_required:
        return "must be given"
    return "unset" if setting.default is None else json.dumps(setting.default)
