"""Where an episode's chance comes from: its start from the task's seed, what happens later from its own name.

The episodes of a group start in one state and are compared there. If they shared the luck that comes afterwards too, an
action would look as good or bad as that one draw, in all of them. Not promised: that an environment which keeps
generators of its own uses the seed that it is given; `milepost check-env` looks for that.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from typing import Any, Final

import numpy as np

EPISODE_SEED: Final = "episode_seed"
"""The key of `reset`'s options."""


def episode_seed(task_seed: int, group_id: str, index: int) -> int:
    """A seed of 63 bits for what happens after the start of episode `index` of a group; equal names, equal seeds."""
    name = f"{task_seed}/{group_id}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1


def reset(env: Any, *, seed: int, later: int) -> object:
    """What `env.reset` returns for a start from `seed`; what happens afterwards is drawn from `later`.

    `later` is in the options of `reset` (left out where it takes none) and seeds a new `env.unwrapped.np_random`.
    Raises what the environment raises.
    """
    options = {"options": {EPISODE_SEED: later}} if _takes_options(env) else {}
    returned: object = env.reset(seed=seed, **options)
    with contextlib.suppress(AttributeError):  # a read-only property: its generators are the environment's own
        env.unwrapped.np_random = np.random.default_rng(later)
    return returned


def _takes_options(env: Any) -> bool:
    try:
        parameters = inspect.signature(env.reset).parameters.values()
    except (TypeError, ValueError):  # a method that cannot be looked into
        return True
    return any(p.name == "options" or p.kind is p.VAR_KEYWORD for p in parameters)
