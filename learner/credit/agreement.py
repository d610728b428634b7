"""How far strategies agree about the same turns, and how well the anchors of a group suit credit assignment.

Pure arithmetic on what strategies return for single groups. The scaling of a batch is not part of it: dividing by a
positive number changes neither ranks nor signs, but whitening, which also moves the mean, may change signs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from milepost.learner.credit.assignment import CreditGroup, Floats
from milepost.learner.credit.graph import TransitionGraph

ROUNDING_DIGITS = 9
"""Credits that agree to so many decimal places are the same: they differ by rounding only."""


def rank_correlation(a: Floats, b: Floats) -> float | None:
    """Spearman's rank correlation of two arrays `[N]`, tied values sharing their mean rank.

    None where it is undefined: fewer than two turns, or one side gives all turns the same.
    Raises ValueError if the shapes differ.

    >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
    0.5
    """
    _check_shapes(a, b)
    if len(a) < 2:
        return None
    x, y = (ranks - np.mean(ranks) for ranks in (_ranks(a), _ranks(b)))
    scale = float(np.sqrt(np.sum(x * x) * np.sum(y * y)))
    # Rounding may leave the interval by one unit in the last place.
    return float(np.clip(np.sum(x * y) / scale, -1.0, 1.0)) if scale > 0 else None


def sign_flip_share(a: Floats, b: Floats) -> float | None:
    """Sign disagreement: share of N turns that one side encourages and the other discourages; 0 does neither.

    None without turns. Raises ValueError if the shapes differ.

    >>> sign_flip_share(np.array([1.0, -1.0, 0.0, 2.0]), np.array([1.0, 1.0, 1.0, -2.0]))
    0.5
    """
    _check_shapes(a, b)
    if len(a) == 0:
        return None
    signs = np.sign(np.round(a, ROUNDING_DIGITS)) * np.sign(np.round(b, ROUNDING_DIGITS))
    return float(np.mean(signs < 0))


@dataclass(frozen=True, slots=True)
class AnchorFacts:
    """Counts over the anchors of one or several groups; they add up.

    Anchors that are too fine meet once and leave nothing to compare. Anchors that are too coarse hide what decides:
    then one action in one state leads to different states. In a random world it does so without any fault.
    """

    turns: int = 0
    states: int = 0
    singleton_turns: int = 0
    """Turns in states that the group met once."""
    repeated_pairs: int = 0
    """Pairs (state, action) that were tried at least twice."""
    aliased_pairs: int = 0
    """Those of them that led to different states."""

    def __add__(self, other: AnchorFacts) -> AnchorFacts:
        return AnchorFacts(
            self.turns + other.turns,
            self.states + other.states,
            self.singleton_turns + other.singleton_turns,
            self.repeated_pairs + other.repeated_pairs,
            self.aliased_pairs + other.aliased_pairs,
        )

    @property
    def singleton_share(self) -> float:
        """Share of turns in a state that the group met once."""
        return self.singleton_turns / max(self.turns, 1)

    @property
    def aliased_share(self) -> float:
        """Share of the repeated pairs that led to different states."""
        return self.aliased_pairs / max(self.repeated_pairs, 1)


def anchor_facts(group: CreditGroup) -> AnchorFacts:
    """The counts of one group.

    >>> facts = anchor_facts(CreditGroup.from_walks("A x B success", "A x C y C failure"))
    >>> facts.turns, facts.states, facts.singleton_turns  # C was met once
    (3, 2, 1)
    >>> facts.repeated_pairs, facts.aliased_pairs  # x in A led to B and to C
    (1, 1)
    """
    visits: Counter[str] = Counter()
    tries: Counter[tuple[str, str]] = Counter()
    targets: dict[tuple[str, str], set[str]] = {}
    for trajectory in group.trajectories:
        for turn in trajectory.turns:
            pair = turn.anchor, turn.action
            visits[turn.anchor] += 1
            tries[pair] += 1
            targets.setdefault(pair, set()).add(turn.next_anchor)
    repeated = [pair for pair, count in tries.items() if count >= 2]
    return AnchorFacts(
        turns=visits.total(),
        states=len(visits),
        singleton_turns=sum(count == 1 for count in visits.values()),
        repeated_pairs=len(repeated),
        aliased_pairs=sum(len(targets[pair]) > 1 for pair in repeated),
    )


def graph_diagnostics(group: CreditGroup, graph: TransitionGraph) -> dict[str, float]:
    """How well the anchors suit the task: too fine gives singletons, too coarse gives aliasing.

    `states`: of the graph. `singleton_share`: share of turns in a state that was visited once, ever. `aliased_share`:
    share of the (s, a) that the group repeated which it saw lead to different states.

    >>> from milepost.learner.credit.graph import build_graph
    >>> group = CreditGroup.from_walks("A x B success", "A x C y C failure")
    >>> graph_diagnostics(group, build_graph(group))  # C was visited once; x in A led to B and to C
    {'states': 2.0, 'singleton_share': 0.3333333333333333, 'aliased_share': 1.0}
    """
    turn_pair = graph.turn_pair
    next_anchors = [turn.next_anchor for trajectory in group.trajectories for turn in trajectory.turns]
    led = {*zip(turn_pair.tolist(), next_anchors, strict=True)}
    successors = np.bincount([pair for pair, _ in led], minlength=len(graph.pair_index))
    repeated = np.bincount(turn_pair, minlength=len(graph.pair_index)) >= 2
    num_repeated = int(np.count_nonzero(repeated))
    alone = graph.state_visits[graph.pair_state[turn_pair]] <= 1
    return {
        "states": float(len(graph.states)),
        "singleton_share": float(np.count_nonzero(alone)) / len(turn_pair),
        "aliased_share": int(np.count_nonzero(successors[repeated] > 1)) / num_repeated if num_repeated else 0.0,
    }


def _ranks(values: Floats) -> Floats:
    """`[N]` ranks from 1; equal values get the mean of theirs."""
    _, inverse, counts = np.unique(np.round(values, ROUNDING_DIGITS), return_inverse=True, return_counts=True)
    last: NDArray[np.int64] = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


def _check_shapes(a: Floats, b: Floats) -> None:
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"arrays of shapes {a.shape} and {b.shape}; compare one credit per turn of the same turns")
