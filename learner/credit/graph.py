"""The empirical transition graph of one group: what all its trajectories together saw of the environment.

Nodes are anchors in which somebody acted, plus two terminals: success, and no success (failure or truncation: a time
limit counts as part of the task). Only counts are kept, so the graph does not depend on the order of the trajectories.
It is an estimate of what the policy met, not a causal model: few visits make it optimistic or pessimistic.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, eye_array
from scipy.sparse.linalg import spsolve

from milepost.learner.credit.assignment import CreditGroup, Floats

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TransitionGraph:
    """Transition counts N(s, a, x) of S states, P state-action pairs and E edges."""

    states: tuple[str, ...]
    """`[S]` anchors, sorted."""
    pair_index: dict[tuple[str, str], int]
    """(anchor, action) -> row in the arrays over pairs."""
    pair_state: Ints
    """`[P]` row of each pair's state."""
    edge_pair: Ints
    """`[E]` row of each edge's pair."""
    edge_target: Ints
    """`[E]` row of the state an edge leads to; S for success, S + 1 for no success."""
    edge_count: Ints
    """`[E]` N(s, a, x), at least 1."""

    @property
    def pair_visits(self) -> Ints:
        """`[P]` N(s, a)."""
        return np.bincount(self.edge_pair, weights=self.edge_count, minlength=len(self.pair_index)).astype(np.int64)

    @property
    def state_visits(self) -> Ints:
        """`[S]` N(s)."""
        return np.bincount(self.pair_state, weights=self.pair_visits, minlength=len(self.states)).astype(np.int64)

    @property
    def num_actions(self) -> Ints:
        """`[S]` number of different actions taken in each state."""
        return np.bincount(self.pair_state, minlength=len(self.states)).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class GraphValues:
    """Discounted probability of success under the group's own behaviour."""

    value: Floats
    """`[S]` V(s), in [0, 1]."""
    q: Floats
    """`[P]` Q(s, a), in [0, 1]."""
    sigma: Floats
    """`[S]` standard deviation of Q(s, a) over the actions as often as they were taken."""


def build_graph(group: CreditGroup) -> TransitionGraph:
    """Count every transition of `group`. The last turn of a trajectory leads to the terminal of its outcome."""
    turns = [turn for trajectory in group.trajectories for turn in trajectory.turns]
    states = tuple(sorted({turn.anchor for turn in turns}))
    pairs = sorted({(turn.anchor, turn.action) for turn in turns})
    state_index = {state: row for row, state in enumerate(states)}
    pair_index = {pair: row for row, pair in enumerate(pairs)}
    counts: Counter[tuple[int, int]] = Counter()
    for trajectory in group.trajectories:
        for turn in trajectory.turns[:-1]:
            counts[pair_index[turn.anchor, turn.action], state_index[turn.next_anchor]] += 1
        last = trajectory.turns[-1]
        terminal = len(states) if trajectory.outcome == "success" else len(states) + 1
        counts[pair_index[last.anchor, last.action], terminal] += 1
    edges = np.array([(pair, target, n) for (pair, target), n in sorted(counts.items())], dtype=np.int64)
    return TransitionGraph(
        states=states,
        pair_index=pair_index,
        pair_state=np.array([state_index[anchor] for anchor, _ in pairs], dtype=np.int64),
        edge_pair=edges[:, 0],
        edge_target=edges[:, 1],
        edge_count=edges[:, 2],
    )


def solve_values(graph: TransitionGraph, *, beta: float) -> GraphValues:
    """Policy evaluation on the empirical process by one sparse solve (CRBC, Ren et al. 2026).

    With mu(a|s) = N(s,a)/N(s) and P(x|s,a) = N(s,a,x)/N(s,a):

        V = (I - beta M)^-1 b,   M(s,s') = sum_a mu P(s'|s,a),   b(s) = beta sum_a mu P(success|s,a)
        Q(s,a) = beta sum_x P(x|s,a) V(x),   V(success) = 1, V(no success) = 0
        sigma(s)^2 = sum_a mu (Q - V)^2

    Cycles are fine: for 0 < beta < 1 the matrix is strictly diagonally dominant, so the solution exists and is unique.
    """
    num_states = len(graph.states)
    edge_state = graph.pair_state[graph.edge_pair]
    # mu(a|s) P(x|s,a) = N(s,a,x) / N(s)
    share = graph.edge_count / graph.state_visits[edge_state]
    inner = graph.edge_target < num_states
    m = csc_array(
        (share[inner], (edge_state[inner], graph.edge_target[inner])),
        shape=(num_states, num_states),
    )
    won = graph.edge_target == num_states
    b = beta * np.bincount(edge_state[won], weights=share[won], minlength=num_states)
    # Rounding may leave the unit interval by one unit in the last place.
    value = np.clip(spsolve(csc_array(eye_array(num_states) - beta * m), b), 0.0, 1.0)
    target_value = np.append(value, [1.0, 0.0])[graph.edge_target]
    backup = np.bincount(graph.edge_pair, weights=graph.edge_count * target_value, minlength=len(graph.pair_index))
    q = beta * backup / graph.pair_visits
    mu = graph.pair_visits / graph.state_visits[graph.pair_state]
    variance = np.bincount(graph.pair_state, weights=mu * (q - value[graph.pair_state]) ** 2, minlength=num_states)
    return GraphValues(value=value, q=q, sigma=np.sqrt(variance))
