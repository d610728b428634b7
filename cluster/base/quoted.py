"""Text of anybody's in a terminal, with a bar before each of its lines."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.text import Text


class Quoted:
    """Text with a bar before each of its lines."""

    def __init__(self, bar: str, text: str, style: str) -> None:
        self._bar, self._text, self._style = bar, text.strip("\n"), style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """For rich."""
        inner = options.update(width=max(1, options.max_width - 2))
        for line in console.render_lines(plain(self._text, self._style), inner, pad=False):
            yield Segment("| " if options.ascii_only else f"{self._bar} ", console.get_style("cyan"))
            yield from line
            yield Segment.line()


def plain(text: str, style: str = "") -> Text:
    """Text of anybody's: control characters are written out, for a terminal would obey them."""
    return Text("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text), style=style)
