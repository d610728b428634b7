"""A trial of a credit strategy on small made-up groups: what no strategy may do, found before anything is trained.

`require_fit` is what every credit of a user's own strategy is held to, in training as well. The trial also finds what
one group cannot show: an answer that changes from call to call, or with the order of the trajectories. Not promised:
that a strategy which passes credits the right turns, or passes on every group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from milepost.learner.credit.assignment import (
    INVALID,
    Credit,
    CreditGroup,
    CreditTrajectory,
    CreditTurn,
    Floats,
    Need,
    Scaling,
    Strategy,
)

_RTOL: Final = 1e-6
_ATOL: Final = 1e-9
"""Sums in another order differ by rounding."""


class StrategyError(ValueError):
    """A user's own credit strategy cannot be loaded, raised, or returned what is no credit of its group."""


def trial(strategy: Strategy) -> list[str]:
    """Let `strategy` credit groups with loops, with equal trajectories and of single turns; returns warnings.

    Raises StrategyError with the first thing that is wrong.

    >>> from milepost.learner.credit.strategies.starpo import StarPO, StarPOConfig
    >>> trial(StarPO(StarPOConfig()))
    []
    """
    if strategy.scaling not in get_args(Scaling):
        raise StrategyError(f"scaling is {strategy.scaling!r}; it must be one of {', '.join(get_args(Scaling))}")
    unknown = sorted(map(repr, set(strategy.requires) - set(get_args(Need))))
    if unknown:
        raise StrategyError(f"requires names {', '.join(unknown)}; known: {', '.join(get_args(Need))}")
    for group in (_LOOPS, _SINGLE_TURNS, _EQUAL):
        _require_stable(strategy, _measured(group, strategy.requires))
    credit = strategy.assign(_measured(_EQUAL, strategy.requires))
    if strategy.scaling == "whiten_tokens" and credit.token_total is None:
        raise StrategyError("scaling is 'whiten_tokens', but token_total is None: set it, or use whiten_turns")
    if "critic" in strategy.requires and credit.value_targets is None:
        raise StrategyError("it requires the critic, but value_targets is None: the critic would learn nothing")
    if "critic" not in strategy.requires and not all(np.allclose(x, 0.0, atol=1e-6) for x in credit.total):
        return ["trajectories that are all equal get credit other than 0: it moves the policy without a comparison"]
    return []


def require_fit(credit: object, group: CreditGroup) -> Credit:
    """`credit`, if it is one of `group`: right shapes, finite numbers. Raises StrategyError with what is wrong."""
    if not isinstance(credit, Credit):
        raise StrategyError(f"assign returned {type(credit).__name__}, not a Credit")
    lengths = [(len(t.turns),) for t in group.trajectories]
    _require_shape("traj_adv", [credit.traj_adv], [(len(lengths),)])
    for name, arrays in (("step_adv", credit.step_adv), ("coverage", credit.coverage), ("total", credit.total)):
        _require_shape(name, arrays, lengths)
    if not all(np.all((x == 0) | (x == 1)) for x in credit.coverage):
        raise StrategyError("coverage holds something other than 0 and 1")
    if credit.token_total is not None:
        _require_per_token("token_total", credit.token_total, group, is_prefix=False)
    if credit.value_targets is not None:
        _require_per_token("value_targets", credit.value_targets, group, is_prefix=True)
    for name, values in (("state_value", credit.state_value), ("diagnostics", credit.diagnostics)):
        _require_numbers(name, values)
    return credit


def _require_shape(name: str, arrays: Sequence[NDArray[Any]], shapes: Sequence[tuple[int, ...]]) -> None:
    if not isinstance(arrays, (tuple, list)):
        raise StrategyError(f"{name} is a {type(arrays).__name__}, not a tuple of arrays")
    found = [x.shape if isinstance(x, np.ndarray) else f"a {type(x).__name__}" for x in arrays]
    if found != list(shapes):
        raise StrategyError(f"{name} has shapes {found}, expected arrays of {list(shapes)}")
    if not all(x.dtype.kind in "fiu" and np.all(np.isfinite(x)) for x in arrays):
        raise StrategyError(f"{name} holds something other than finite numbers")


def _require_per_token(name: str, values: Sequence[Sequence[Floats]], group: CreditGroup, *, is_prefix: bool) -> None:
    """One array per turn over its tokens, or over its first ones where `is_prefix`."""
    if not isinstance(values, (tuple, list)) or len(values) != len(group.trajectories):
        raise StrategyError(f"{name} is not a tuple with an entry for each of {len(group.trajectories)} trajectories")
    for turns, trajectory in zip(values, group.trajectories, strict=True):
        lengths = [turn.num_tokens for turn in trajectory.turns]
        if is_prefix and len(turns) == len(lengths):
            lengths = [min(max(np.size(x), 1), n) for x, n in zip(turns, lengths, strict=True)]
        _require_shape(name, turns, [(n,) for n in lengths])


def _require_numbers(name: str, values: Mapping[str, float]) -> None:
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise StrategyError(f"{name} is not a dict with text as keys")
    if not all(isinstance(x, (int, float, np.number)) and math.isfinite(x) for x in values.values()):
        raise StrategyError(f"{name} holds something other than finite numbers")


def _require_stable(strategy: Strategy, group: CreditGroup) -> None:
    credit = require_fit(strategy.assign(group), group)
    if not _equal(credit, require_fit(strategy.assign(group), group), range(len(group.trajectories))):
        raise StrategyError("the same group gets another credit the second time; every learner rank computes its own")
    size = len(group.trajectories)
    for order in (range(size)[::-1], [*range(1, size), 0]):
        moved = CreditGroup(group.task_id, tuple(group.trajectories[i] for i in order))
        if not _equal(credit, require_fit(strategy.assign(moved), moved), order):
            raise StrategyError("the credit depends on the order of the trajectories")


def _equal(credit: Credit, moved: Credit, order: Sequence[int]) -> bool:
    """Whether trajectory `order[k]` of `credit` has what trajectory k of `moved` has."""
    return all(
        len(a) == len(b) and all(np.allclose(x, y, rtol=_RTOL, atol=_ATOL) for x, y in zip(a, b, strict=True))
        for k, i in enumerate(order)
        for a, b in zip(_parts(credit, i), _parts(moved, k), strict=True)
    )


def _parts(credit: Credit, i: int) -> list[Sequence[Floats]]:
    parts: list[Sequence[Floats]] = [[credit.traj_adv[i : i + 1]], [credit.step_adv[i]], [credit.total[i]]]
    parts.append([credit.coverage[i].astype(np.float64)])
    return [*parts, *(values[i] for values in (credit.token_total, credit.value_targets) if values is not None)]


_LOOPS = CreditGroup.from_walks(
    "a go b go c go d success",
    "a turn a go b go c go d success",
    "a go b back a turn a failure",
    f"a {INVALID} a truncated",
    reward=[0, 0.25, 1, 0, 0, 0.25, 1, 0, -0.5, 0, 0],
    num_tokens=[1, 2, 3, 1, 2, 3, 1, 1, 2, 3, 1],
)
_SINGLE_TURNS = CreditGroup.from_walks("a go b success", "a turn b failure", "a go b failure", reward=[1, 0, 0.3])
_EQUAL = CreditGroup.from_walks(*["a go b go c go d success"] * 3, num_tokens=[1, 2, 3] * 3)


def _measured(group: CreditGroup, requires: frozenset[Need]) -> CreditGroup:
    """The group with what the learner or the environment would give a strategy that requires it, and nothing else."""
    return CreditGroup(
        group.task_id,
        tuple(
            CreditTrajectory(t.outcome, tuple(_with_readings(turn, k, requires) for k, turn in enumerate(t.turns)))
            for t in group.trajectories
        ),
    )


def _with_readings(turn: CreditTurn, place: int, requires: frozenset[Need]) -> CreditTurn:
    readings: dict[str, object] = {}
    if "progress" in requires:
        readings["progress"] = min(1.0, place / 4)
    if "entropy" in requires:
        readings["entropy"] = 0.1 + 0.2 * place
    if "history_gain" in requires:
        readings["history_gain"] = 0.05 * place
    if "critic" in requires:
        values = tuple(0.1 * (place + k) for k in range(turn.num_tokens))
        readings |= {"value": values[0], "token_values": values}
    return msgspec.structs.replace(turn, **readings)
