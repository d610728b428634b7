"""Which random generators an environment holds, and in what state: to see luck that the episodes of a group share.

Looks at what objects store, calls nothing of theirs, and goes a few levels deep. Not promised: that a generator in C
code, in a closure or behind a service is found.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import gymnasium
import numpy as np

Generators = dict[str, str]
"""Where a generator lies, as its author would write it -> a digest of its state."""

_DEPTH = 4
_MOST_OBJECTS = 5000
_MOST_ITEMS = 50


def generators(env: object) -> Generators:
    """The generators of `env`, and those of Python and NumPy that everybody shares."""
    found: Generators = {
        "random": _digest(random.getstate()),
        "numpy.random": _digest(np.random.get_state(legacy=True)),
    }
    left, seen = [("env", env, 0)], {id(env)}
    while left and len(seen) < _MOST_OBJECTS:
        path, holder, depth = left.pop()
        for name, value in _held(holder):
            where = f"{path}{name}"
            state = _state(value)
            if state is not None:
                found[where] = _digest(state)
            elif depth < _DEPTH and id(value) not in seen:
                seen.add(id(value))
                left.append((where, value, depth + 1))
    return found


def shared(one: tuple[Generators, Generators], other: Generators) -> list[str]:
    """Generators from which one episode drew between its start and its end, and that started alike in another one.

    `one` is (after the start, at the end), `other` after the start of another episode of the same task.
    """
    start, end = one
    drawn = [where for where, state in start.items() if end.get(where, state) != state]
    return sorted(where for where in drawn if other.get(where) == start[where])


def _held(holder: object) -> Iterator[tuple[str, Any]]:
    """What `holder` stores, with the way to it."""
    if isinstance(holder, dict):
        yield from ((f"[{key!r}]", value) for key, value in list(holder.items())[:_MOST_ITEMS])
    elif isinstance(holder, list | tuple):
        yield from ((f"[{index}]", value) for index, value in enumerate(holder[:_MOST_ITEMS]))
    elif not isinstance(holder, type | ModuleType | FunctionType | MethodType | gymnasium.spaces.Space):
        yield from ((f".{name}", value) for name, value in list(getattr(holder, "__dict__", {}).items()))


def _state(value: object) -> object | None:
    """The state of a generator; None for anything else."""
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return value.get_state(legacy=True)
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return value.getstate()
    return None


def _digest(state: object) -> str:
    with np.printoptions(threshold=2**31):
        return hashlib.blake2b(repr(state).encode(), digest_size=8).hexdigest()
