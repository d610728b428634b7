"""Episodes spelt as text, for evaluators: `A x B y A success` is two steps, from A by x to B by y to A."""

from __future__ import annotations

from typing import Any, get_args

from milepost.envs.types import Outcome
from milepost.reward.evaluators.episode import Episode, Step


def walk(spelt: str, **fields: Any) -> Episode:
    """The episode; `fields` are lists, one value of a field of `Step` for each step. The action `-` is no valid one."""
    *words, ended = spelt.split()
    [outcome] = [known for known in get_args(Outcome) if known == ended]
    moves = [words[start : start + 3] for start in range(0, len(words) - 1, 2)]
    steps = [
        Step(
            anchor=anchor,
            action=None if action == "-" else action,
            next_anchor=to,
            **{name: values[t] for name, values in fields.items()},
        )
        for t, (anchor, action, to) in enumerate(moves)
    ]
    return Episode(outcome=outcome, steps=tuple(steps))
