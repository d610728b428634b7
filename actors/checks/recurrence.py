"""How often the states that anchors name are met again, and what keeps them from it.

Credit by state transition compares what the episodes of a task did in the same state. Where anchors hold a counter or
the history, every state is met once and nothing is compared. Not promised: that states which a random policy meets
again are those that a trained one meets, or that an anchor which recurs names all of the state.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec

_NUMBER = re.compile(r"\d+")
_FEWEST_STEPS = 6
"""From one state to the next; fewer show no habit."""
_MOST_ONCE_SHARE = 0.8
"""Of the states that random episodes of a task meet; in the environments of this project it is 0.2 to 0.3."""
_FEWEST_STATES = 10
_KEPT_SHARE = 0.9
"""Of an anchor that the next one repeats, and of the steps in which it does, where a history grows."""

Walk = Sequence[str]
"""Anchors of one episode, one for each turn as it begins."""


class Recurrence(msgspec.Struct, frozen=True, kw_only=True):
    """What the anchors of some episodes say."""

    episodes: int
    states: int
    """Anchors that episodes of one task met after their start, summed over tasks."""
    once: int
    """Those among them that were met once."""
    counter: tuple[str, str] | None
    """Two anchors in a row with a number that rises, or falls, in every turn of every episode, if there is one."""
    history: tuple[str, str] | None
    """Two anchors in a row, the second of which repeats the first and goes on, if nearly all do."""

    @property
    def in_words(self) -> str:
        """The share of states that were met once, for people."""
        if not self.states:
            return f"{self.episodes} random episodes never left the states in which they start"
        return f"of {self.states} states that {self.episodes} random episodes met, {self.once} were met once"

    @property
    def complaint(self) -> tuple[str, str] | None:
        """What is wrong with the anchors, and what their author should do; None if nothing is known to be."""
        if self.history is not None:
            what = f"the anchor holds the history, it only grows: {_shown(self.history)}; {self.in_words}"
            return what, "give info['anchor'] a key of the present state alone, without what led to it"
        if self.counter is not None:
            what = f"the anchor holds a counter, a number that moves one way in every turn: {_shown(self.counter)}"
            return f"{what}; {self.in_words}", "leave it out of info['anchor'], unless it alone tells states apart"
        if self.states >= _FEWEST_STATES and self.once > _MOST_ONCE_SHARE * self.states:
            fix = (
                "leave out of info['anchor'] what makes each visit another one, or count on credit by trajectory alone"
            )
            return f"states hardly recur: {self.in_words}", fix
        return None


def recurrence(tasks: Sequence[Sequence[Walk]]) -> Recurrence:
    """What `tasks[task][episode]` shows.

    >>> recurrence([[["hall", "attic", "hall"], ["hall", "cellar", "attic"]]]).states
    2
    >>> recurrence([[["hall", "attic", "hall"], ["hall", "cellar", "attic"]]]).once
    1
    """
    walks = [walk for walks in tasks for walk in walks]
    visits = [Counter(_after_start(walks)) for walks in tasks]
    return Recurrence(
        episodes=len(walks),
        states=sum(len(met) for met in visits),
        once=sum(count == 1 for met in visits for count in met.values()),
        counter=_counter(walks),
        history=_history(walks),
    )


def _after_start(walks: Sequence[Walk]) -> Iterator[str]:
    """Every visit to a state in which no episode of the task started."""
    starts = {walk[0] for walk in walks if walk}
    return (anchor for walk in walks for anchor in walk if anchor not in starts)


def _counter(walks: Sequence[Walk]) -> tuple[str, str] | None:
    """With the states in which episodes start, or without: a start may be named in its own way."""
    return _moving(walks) or _moving([walk[1:] for walk in walks])


def _moving(walks: Sequence[Walk]) -> tuple[str, str] | None:
    steps = [pair for walk in walks for pair in pairwise(walk)]
    if len(steps) < _FEWEST_STEPS:
        return None
    numbers = [tuple([int(found) for found in _NUMBER.findall(anchor)] for anchor in pair) for pair in steps]
    least = min(min(len(one), len(other)) for one, other in numbers)
    for place in (*range(least), *range(-least, 0)):
        changes = [other[place] - one[place] for one, other in numbers]
        if min(changes) > 0 or max(changes) < 0:
            return steps[-1]
    return None


def _history(walks: Sequence[Walk]) -> tuple[str, str] | None:
    steps = [pair for walk in walks for pair in pairwise(walk) if pair[0] != pair[1]]
    if len(steps) < _FEWEST_STEPS:
        return None
    growing = [pair for pair in steps if _goes_on(*(_NUMBER.sub("0", anchor) for anchor in pair))]
    return growing[-1] if len(growing) >= _KEPT_SHARE * len(steps) else None


def _goes_on(one: str, other: str) -> bool:
    """Whether `other` is `one` with something put into it, at one place."""
    head = _common(one, other)
    tail = _common(one[head:][::-1], other[head:][::-1])
    return len(other) > len(one) and head + tail >= _KEPT_SHARE * len(one)


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _shown(anchors: tuple[str, str]) -> str:
    """Two anchors where they differ."""
    start = max(0, _common(*anchors) - 30)
    one, other = (("..." if start else "") + anchor[start : start + 60] for anchor in anchors)
    return f"{one!r}, then {other!r}"
