"""Transitions of a task that outlive their group: what to remember of a group, how it fades, what of it can be used.

Pure arithmetic on counts. A history enriches the estimates of later groups of the same task (TIGPO, arXiv 2609.03383)
and is never trained on. Old counts come from older policies: the fading limits that bias, it does not remove it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from milepost.learner.credit.assignment import CreditGroup, PastTransition
from milepost.learner.credit.settings import Truncation

FAINTEST: Final = 0.01
"""What has faded below a hundredth of a visit is forgotten."""

Key = tuple[str, str, str | None, bool]


def transitions(group: CreditGroup, *, truncation: Truncation = "failure") -> tuple[PastTransition, ...]:
    """What the trajectories of `group` saw, each different transition once with its count; not the group's history.

    Under `bootstrap` the last turn of a truncated trajectory leads on to the state it was cut off in.

    >>> met = transitions(CreditGroup.from_walks("A x A x B success"))
    >>> [(p.anchor, p.action, p.target, p.won, p.count) for p in met]
    [('A', 'x', 'A', False, 1.0), ('A', 'x', None, True, 1.0)]
    """
    counts: Counter[Key] = Counter()
    for trajectory in group.trajectories:
        for turn in trajectory.turns[:-1]:
            counts[turn.anchor, turn.action, turn.next_anchor, False] += 1
        last = trajectory.turns[-1]
        goes_on = truncation == "bootstrap" and trajectory.outcome == "truncated"
        counts[last.anchor, last.action, last.next_anchor if goes_on else None, trajectory.outcome == "success"] += 1
    return _sorted(PastTransition(*key, count=float(n)) for key, n in counts.items())


def faded(past: Sequence[PastTransition], factor: float) -> tuple[PastTransition, ...]:
    """Exponential decay: every count times `factor`; transitions that are then fainter than `FAINTEST` are left out.

    Raises:
        ValueError: `factor` is not in [0, 1].

    >>> past = [PastTransition("A", "x", "B", False, count) for count in (2.0, 0.03)]
    >>> [p.count for p in faded(past, 0.25)]
    [0.5]
    """
    if not 0.0 <= factor <= 1.0:
        raise ValueError(f"counts are multiplied by {factor}; a history fades by a factor from 0 to 1")
    return tuple(
        PastTransition(p.anchor, p.action, p.target, p.won, p.count * factor)
        for p in past
        if p.count * factor >= FAINTEST
    )


def merged(past: Sequence[PastTransition], new: Sequence[PastTransition], *, limit: int) -> tuple[PastTransition, ...]:
    """The sum of both; at most `limit` transitions, those with the largest counts.

    Of equal counts the first in the order of names stays, so the result is the same on every machine.

    >>> rare, often = (PastTransition("A", action, "B", False, count) for action, count in (("x", 1.0), ("y", 2.0)))
    >>> [(p.action, p.count) for p in merged([rare, often], [often], limit=1)]
    [('y', 4.0)]
    """
    counts: dict[Key, float] = {}
    for p in (*past, *new):
        counts[_key(p)] = counts.get(_key(p), 0.0) + p.count
    known = _sorted(PastTransition(*key, count=count) for key, count in counts.items())
    return _sorted(sorted(known, key=lambda p: -p.count)[:limit])


def grounded(past: Sequence[PastTransition], acted: Collection[str]) -> list[PastTransition]:
    """The part of `past` that says something: transitions that end, or lead to where somebody is known to have acted.

    What was forgotten can leave a transition into a state of which nothing is known any more. Such a state has no
    value, and 0 would call it a failure: the transition is left out, and so are those that then lead nowhere.

    Args:
        acted: states that are known without the past.

    >>> past = [PastTransition("A", "x", "B", False, 1.0), PastTransition("A", "y", None, True, 1.0)]
    >>> [p.action for p in grounded(past, acted={"A"})]  # nobody is known to have acted in B
    ['y']
    """
    leaving = Counter(p.anchor for p in past)
    into: defaultdict[str, list[int]] = defaultdict(list)
    for row, p in enumerate(past):
        if p.target is not None:
            into[p.target].append(row)
    dropped: set[int] = set()
    unknown = [state for state in into if state not in acted and not leaving[state]]
    while unknown:
        for row in into.pop(unknown.pop(), ()):
            dropped.add(row)
            start = past[row].anchor
            leaving[start] -= 1
            if not leaving[start] and start not in acted:
                unknown.append(start)
    return [p for row, p in enumerate(past) if row not in dropped]


def _key(p: PastTransition) -> Key:
    return p.anchor, p.action, p.target, p.won


def _sorted(past: Iterable[PastTransition]) -> tuple[PastTransition, ...]:
    return tuple(sorted(past, key=lambda p: (p.anchor, p.action, p.target is None, p.target or "", p.won)))
