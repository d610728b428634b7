"""A coroutine that asks a person, who may go at any time."""

import asyncio
import io
import sys

import pytest

from milepost.cluster.live.terminal import Left, Terminal


class Typed:
    """Standard input: lines, and then what ends it."""

    def __init__(self, *lines, end):
        self.lines, self.end = list(lines), end

    def readline(self):
        if self.lines:
            return self.lines.pop(0)
        raise self.end


@pytest.fixture
def terminal():
    return Terminal(io.StringIO())


async def two_lines(terminal, ended):
    try:
        return await terminal.ask("a> "), await terminal.ask("b> ")
    finally:
        await asyncio.sleep(0)
        ended.append("in order")


def test_each_prompt_is_answered_by_the_next_line(terminal, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\n"))
    assert terminal.conduct(two_lines(terminal, [])) == ("one", "")
    assert terminal.out.getvalue() == "a> b> "


@pytest.mark.parametrize("stdin", [io.StringIO("one\n"), Typed("one\n", end=KeyboardInterrupt)])
def test_who_leaves_ends_the_coroutine_in_order(terminal, monkeypatch, stdin):
    monkeypatch.setattr(sys, "stdin", stdin)
    ended = []
    with pytest.raises(Left):
        terminal.conduct(two_lines(terminal, ended))
    assert ended == ["in order"]


def test_an_error_of_the_coroutine_comes_out(terminal):
    async def fails():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        terminal.conduct(fails())
