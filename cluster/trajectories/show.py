"""A recorded episode in the terminal, laid out like a chat: what was shown, what was answered, and what it earned."""

from __future__ import annotations

from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from milepost.cluster.trajectories.reader import Episode

_OUTCOME_STYLE = {"success": "bold green", "failure": "bold red", "truncated": "bold yellow", None: "bold magenta"}


def chat(episode: Episode) -> RenderableType:
    """The episode from its first prompt to its end, with each turn's credit beside it."""
    turns = Table.grid(padding=(0, 2), expand=True)
    turns.add_column(ratio=1)
    turns.add_column(width=26)
    for turn in episode.turns:
        turns.add_row(_said(turn), _earned(turn))
        turns.add_row()
    return Group(_head(episode.row), Text(), turns)


def _head(row: dict[str, Any]) -> RenderableType:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column()
    cohort = f", cohort {row['cohort']}" if row["cohort"] else ""
    facts.add_row("task", _plain(f"{row['env']}, seed {row['seed']}, {row['split']}{cohort}"))
    outcome = "failed" if row["outcome"] is None else f"{row['outcome']}, reward {row['reward']:g}"
    facts.add_row("outcome", Text(outcome, style=_OUTCOME_STYLE[row["outcome"]]))
    facts.add_row("fate", _plain(" · ".join(filter(None, [_fate(row), row["reason"]]))))
    if row["oldest_version"] is not None:
        facts.add_row("sampled by", Text(f"policy {_span(row['oldest_version'], row['newest_version'])}"))
    if row["trajectory_credit"] is not None:
        facts.add_row("credit", Text(f"{row['strategy']}, {row['trajectory_credit']:+.3f} for the whole trajectory"))
    size = f"{row['num_turns']} turns, {row['num_tokens']} sampled tokens"
    facts.add_row("size", Text(size + ("" if row["seconds"] is None else f", {row['seconds']:.1f} s")))
    title = f"episode {row['episode']} · {row['group_id']}/{row['index']}"
    return Panel(facts, title=title, title_align="left", border_style="cyan")


def _fate(row: dict[str, Any]) -> str:
    version = row["learner_version"]
    judged = "" if version is None else f" at version {version}"
    return f"{row['fate']}{judged}"


def _said(turn: dict[str, Any]) -> RenderableType:
    said = [_Quoted("│", turn["prompt"], "dim"), _Quoted("▌", turn["response"] or "(no answer)", "bold")]
    if turn["tool"] is not None:
        said.append(_Quoted("│", f"tool {turn['tool']}", "cyan"))
    return Group(*said)


class _Quoted:
    """Text with a bar before each of its lines."""

    def __init__(self, bar: str, text: str, style: str) -> None:
        self._bar, self._text, self._style = bar, text.strip("\n"), style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        inner = options.update(width=max(1, options.max_width - 2))
        for line in console.render_lines(_plain(self._text, self._style), inner, pad=False):
            yield Segment("| " if options.ascii_only else f"{self._bar} ", console.get_style("cyan"))
            yield from line
            yield Segment.line()


def _earned(turn: dict[str, Any]) -> RenderableType:
    lines = [Text(f"turn {turn['turn']}", style="bold")]
    if turn["credit"] is not None:
        lines.append(Text(f"credit {turn['credit']:+.3f}", style=_sign_style(turn["credit"])))
        if not turn["compared"]:
            lines.append(Text("nothing to compare it with", style="dim"))
    if turn["advantage"] is not None:
        lines.append(Text(f"advantage {turn['advantage']:+.3f}"))
    elif turn["credit"] is not None:
        lines.append(Text("not trained on", style="dim"))
    if turn["reward"] is None:
        lines.append(Text("broke off here", style="bold magenta"))
    else:
        progress = "" if turn["progress"] is None else f", progress {turn['progress']:.0%}"
        lines.append(Text(f"reward {turn['reward']:g}{progress}"))
        lines.append(_plain(f"action {turn['action']}" if turn["action"] is not None else "no valid action"))
    return Group(*lines)


def _sign_style(credit: float) -> str:
    return "green" if credit > 0 else "red" if credit < 0 else ""


def _span(oldest: int, newest: int) -> str:
    return f"version {oldest}" if oldest == newest else f"versions {oldest} to {newest}"


def _plain(text: str, style: str = "") -> Text:
    """Text of anybody's: control characters are written out, for a terminal would obey them."""
    return Text("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text), style=style)
