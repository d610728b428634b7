"""Arithmetic of exploring rollouts: the first candidate that rises (RRO), and statistics of a search tree (MCTS).

Pure functions for a user's own rollout strategy; nothing in the house drives one yet. The caller estimates rewards, by
completing a step several times, and needs an environment that can go back to a state, by snapshot or by replaying its
actions. What a search sampled is `behavior="search"`: it never serves as a baseline for plain rollouts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exploration:
    """What exploring one step found. Candidates are numbered in the order in which they were sampled, from 0."""

    chosen: int
    """The first that rose; the best one where none did."""
    rejected: tuple[int, ...]
    """Those estimated lower than the chosen one, lowest first: the losing halves of preference pairs."""
    num_candidates: int
    """How many were sampled. Each of them cost as many completions as its estimate is a mean of."""
    has_risen: bool


def first_rise(estimates: Iterable[float], *, previous: float, budget: int) -> Exploration:
    """Sample candidates for one step until the first whose process reward exceeds that of the step before.

    Source: Reward Rising Optimization (arXiv 2505.20737). The rule is content with any rise, not with the best one, and
    an estimate from few completions rises by chance. A previous reward of 1 can't be exceeded: that costs the budget.

    Args:
        estimates: mean outcome of each candidate's completions; consumed one by one, and no further than needed.
        previous: process reward of the step before.
        budget: candidates to sample at most, at least 1.

    Raises:
        ValueError: no candidate, a budget below 1, or an estimate that is not finite.
    """
    if budget < 1:
        raise ValueError(f"budget is {budget}; exploring a step takes at least 1 candidate")
    seen: list[float] = []
    for estimate in itertools.islice(estimates, budget):
        if not math.isfinite(estimate):
            raise ValueError(f"the estimate of candidate {len(seen)} is {estimate}, not a finite number")
        seen.append(estimate)
        if estimate > previous:
            break
    if not seen:
        raise ValueError("there is no candidate to explore; pass the estimate of at least one")
    best = seen.index(max(seen))
    lower = [k for k, estimate in enumerate(seen) if estimate < seen[best]]
    return Exploration(
        chosen=best,
        rejected=tuple(sorted(lower, key=lambda k: seen[k])),
        num_candidates=len(seen),
        has_risen=seen[best] > previous,
    )


def candidates_per_step(explorations: Sequence[Exploration]) -> float:
    """Mean number of candidates sampled per step, RRO's "trajectories". It counts neither completions nor tokens.

    Raises ValueError for no steps.
    """
    if not explorations:
        raise ValueError("no step was explored, so there is no mean number of candidates")
    return sum(one.num_candidates for one in explorations) / len(explorations)


def uct_scores(values: Sequence[float], visits: Sequence[int], *, exploration: float) -> list[float]:
    """`Q(a) + c sqrt(ln N / n_a)` of the actions of a tree node with `N = sum n_a`; descend into the largest.

    Source: UCT (Kocsis and Szepesvari, ECML 2006). An action that was never visited scores infinity, so it is next.
    Data chosen by it over-represents actions that look good: weight them by 1 / n_a, or train on the prior's samples.

    Args:
        values: `[A]`, mean outcome of each action so far.
        visits: `[A]`, how often each was taken.
        exploration: c, at least 0; in units of outcomes.

    Raises:
        ValueError: no action, lengths that differ, or a negative count.
    """
    _check(values, visits)
    total = sum(visits)
    return [
        q + exploration * math.sqrt(math.log(total) / n) if n else math.inf for q, n in zip(values, visits, strict=True)
    ]


def backed_up(value: float, outcome: float, *, visits: int) -> float:
    """`Q + (R - Q) / n`: the mean outcome after one more. `visits` n counts it, so is at least 1 (else ValueError)."""
    if visits < 1:
        raise ValueError(f"visits is {visits}; count the visit whose outcome is backed up, too")
    return value + (outcome - value) / visits


def sibling_advantages(values: Sequence[float], visits: Sequence[int]) -> list[float]:
    """`Q(s, a) - sum_b (n_b / N) Q(s, b)`: CRBC's raw credit on a tree, where states are nodes.

    Args:
        values: `[A]`, mean outcome of each action of a node.
        visits: `[A]`, how often each was taken. What was never taken has advantage 0.

    Raises:
        ValueError: no action, lengths that differ, a negative count, or no visit at all.
    """
    _check(values, visits)
    if not any(visits):
        raise ValueError("no action of the node was visited, so there is nothing to compare")
    mean = math.fsum(n * q for q, n in zip(values, visits, strict=True)) / sum(visits)
    return [q - mean if n else 0.0 for q, n in zip(values, visits, strict=True)]


def _check(values: Sequence[float], visits: Sequence[int]) -> None:
    if not values or len(values) != len(visits) or min(visits) < 0:
        raise ValueError(f"{len(values)} values with visits {list(visits)}: pass a count >= 0 for each action")
