"""What stands on the page of a group and of an episode: read from a source, credited, and made ready to be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from milepost.cluster.viewer.credits import Credited, credited
from milepost.cluster.viewer.graph import Picture, picture
from milepost.cluster.viewer.links import View
from milepost.cluster.viewer.messages import Message, messages, pieces
from milepost.cluster.viewer.sources import Source
from milepost.cluster.viewer.tokens import Token, signed, tokenizer_of, tokens, values

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """One turn in the strip of an episode."""

    turn: int
    credit: float | None
    shade: str


@dataclass(frozen=True, slots=True)
class Member:
    """One episode beside those it is compared with."""

    row: Row
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class GroupShown:
    """Episodes of one task, what each turn earned, and their graph."""

    group_id: str
    first: Row
    """Any of its episodes: the task is that of all."""
    members: list[Member]
    credited: Credited
    picture: Picture | None


@dataclass(frozen=True, slots=True)
class TurnShown:
    """One turn."""

    row: Row
    prompt: list[Message]
    prompt_pieces: list[tuple[bool, str]]
    response: list[Message]
    response_pieces: list[tuple[bool, str]]
    tokens: list[Token]
    tool: str
    """Facts about a tool call, JSON; empty where there was none."""
    credit: float | None
    shade: str
    versions: str


@dataclass(frozen=True, slots=True)
class EpisodeShown:
    """An episode, turn by turn, beside those it is compared with."""

    row: Row
    turns: list[TurnShown]
    group: GroupShown
    counts: bool
    """False where a later row of the same episode counts."""
    later: int
    """Number of that row."""
    before: int | None
    after: int | None
    """Numbers of its neighbours in the group."""
    has_texts: bool
    """Whether there is a tokenizer, so that tokens are texts."""


def group_shown(source: Source, rows: Sequence[Row], strategy: str, *, follow: int | None = None) -> GroupShown:
    """Episodes that are compared with each other, at least one; `follow` is the number of the one whose way is shown.

    Raises ConfigError where the files cannot be read.
    """
    found = credited(rows, source.recorded.steps([row["episode"] for row in rows]), strategy)
    members = [
        Member(
            row,
            [Cell(t, x, signed(x, found.largest)) for t, x in enumerate(found.credit[row["episode"]])],
        )
        for row in rows
    ]
    drawn = None
    if found.graph is not None:
        place = found.in_graph.index(follow) if follow in found.in_graph else None
        drawn = picture(found.graph, [found.credit[episode] for episode in found.in_graph], place)
    return GroupShown(rows[0]["group_id"], rows[0], members, found, drawn)


def episode_shown(source: Source, number: int, view: View) -> EpisodeShown:
    """One episode. Raises ConfigError where there is none, or the files cannot be read."""
    row = source.recorded.episode(number)
    rows = source.recorded.beside(row)
    group = group_shown(source, rows, view.strategy, follow=number)
    order = [other["episode"] for other in rows]
    place = order.index(number)
    stored = source.recorded.turns(number)
    tokenizer = tokenizer_of(source.run)
    credit = group.credited.credit[number]
    counting = [values(turn, view.colour, x) for turn, x in zip(stored, credit, strict=True)]
    largest = max((abs(x) for found in counting for x in found if x is not None), default=0.0)
    later = source.recorded.counting(row)
    return EpisodeShown(
        row=row,
        turns=[
            _turn(turn, x, tokens(turn, view.colour, found, largest, tokenizer), group.credited.largest)
            for turn, x, found in zip(stored, credit, counting, strict=True)
        ],
        group=group,
        counts=later == number,
        later=later,
        before=order[place - 1] if place else None,
        after=order[place + 1] if place + 1 < len(order) else None,
        has_texts=tokenizer is not None,
    )


def _turn(turn: Row, credit: float | None, shown: list[Token], largest: float) -> TurnShown:
    response = turn["response"] or ""
    return TurnShown(
        row=turn,
        prompt=messages(turn["prompt"]),
        prompt_pieces=pieces(turn["prompt"]),
        response=messages(response),
        response_pieces=pieces(response),
        tokens=shown,
        tool=turn["tool"] or "",
        credit=credit,
        shade=signed(credit, largest),
        versions=_versions(turn["versions"]),
    )


def _versions(spans: Sequence[dict[str, int]]) -> str:
    """For example `4`, or `4 (tokens 0 to 7), 5 (tokens 8 to 11)`."""
    if len(spans) == 1:
        return str(spans[0]["version"])
    return ", ".join(f"{span['version']} (tokens {span['start']} to {span['end'] - 1})" for span in spans)


def why(row: Row) -> str:
    """What became of an episode and why, in a line.

    >>> why({"fate": "trained", "learner_version": 3, "reason": "selected"})
    'trained on at version 3: selected'
    """
    fate = "trained on" if row["fate"] == "trained" else row["fate"].replace("_", " ")
    at = "" if row["learner_version"] is None else f" at version {row['learner_version']}"
    return f"{fate}{at}" + (f": {row['reason']}" if row["reason"] else "")
