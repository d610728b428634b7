"""The empirical transition graph of one group: what all its trajectories together saw of the environment.

Nodes are anchors in which somebody acted, plus two terminals: success, and no success. A trajectory that was cut off
ends in the latter (a time limit counts as part of the task), or leads on to the state it was cut off in, whose value
then stands for the rest (`Truncation`). What earlier groups of the task saw (`CreditGroup.history`) counts like the
group's own turns, as far as it has not faded. Only counts are kept, so the graph does not depend on the order of the
trajectories. It is an estimate of what the policies met, not a causal model: few visits make it optimistic or
pessimistic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, eye_array
from scipy.sparse.linalg import spsolve

from milepost.learner.credit.assignment import CreditGroup, Floats, PastTransition
from milepost.learner.credit.history import grounded
from milepost.learner.credit.settings import Truncation

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TransitionGraph:
    """Transition counts N(s, a, x) of S states, P state-action pairs and E edges, and the N turns of the group."""

    states: tuple[str, ...]
    """`[S]` anchors, sorted."""
    pair_index: dict[tuple[str, str], int]
    """(anchor, action) -> row in the arrays over pairs."""
    pair_state: Ints
    """`[P]` row of each pair's state."""
    edge_pair: Ints
    """`[E]` row of each edge's pair."""
    edge_target: Ints
    """`[E]` row of the state an edge leads to; S for success, S + 1 for no success, S + 2 for a state that nobody acted
    in, where a trajectory was cut off."""
    edge_count: Floats
    """`[E]` N(s, a, x): the group's turns, plus what has not faded of its history."""
    turn_edge: Ints
    """`[N]` row of the edge each turn of the group took, trajectory after trajectory."""

    @property
    def turn_pair(self) -> Ints:
        """`[N]` row of the pair of each turn of the group."""
        return self.edge_pair[self.turn_edge]

    @property
    def edge_state(self) -> Ints:
        """`[E]` row of the state each edge leaves."""
        return self.pair_state[self.edge_pair]

    @property
    def pair_visits(self) -> Floats:
        """`[P]` N(s, a)."""
        return _sums(self.edge_pair, self.edge_count, len(self.pair_index))

    @property
    def state_visits(self) -> Floats:
        """`[S]` N(s)."""
        return _sums(self.pair_state, self.pair_visits, len(self.states))

    @property
    def mu(self) -> Floats:
        """`[P]` mu(a|s) = N(s, a) / N(s)."""
        visits = self.pair_visits
        share: Floats = visits / _sums(self.pair_state, visits, len(self.states))[self.pair_state]
        return share

    @property
    def num_actions(self) -> Ints:
        """`[S]` number of different actions taken in each state."""
        return np.bincount(self.pair_state, minlength=len(self.states))

    @property
    def won(self) -> Floats:
        """`[E]` 1 for edges that end in success, else 0."""
        won: Floats = np.where(self.edge_target == len(self.states), 1.0, 0.0)
        return won


@dataclass(frozen=True, slots=True, eq=False)
class GraphValues:
    """Value functions V(s) and Q(s, a) under the behaviour in the graph, discounted per turn.

    By default the probability of success, in [0, 1]; with rewards on the edges, the return from here on.
    """

    value: Floats
    """`[S]` V(s)."""
    q: Floats
    """`[P]` Q(s, a)."""
    sigma: Floats
    """`[S]` standard deviation of Q(s, a) over the actions as often as they were taken."""


def build_graph(
    group: CreditGroup,
    *,
    truncation: Truncation = "failure",
    won: Sequence[bool] | None = None,
    with_history: bool = True,
) -> TransitionGraph:
    """Count every transition of `group` and of its history.

    The last turn of a trajectory leads to the terminal of its outcome, that of a truncated one under `bootstrap` to
    the state it was cut off in. States known from the history only are states
    of the graph; a past transition into a state that nobody is known to have acted in is left out.

    Args:
        won: `[G]` which trajectories end in success; those of this outcome if None.
        with_history: whether what earlier groups met counts; of them only outcomes are known.

    >>> graph = build_graph(CreditGroup.from_walks("A x B p B success", "A y C failure"))
    >>> graph.states, list(graph.pair_index)
    (('A', 'B'), [('A', 'x'), ('A', 'y'), ('B', 'p')])
    >>> graph.edge_target.tolist()  # to B, to the terminals no success (3) and success (2)
    [1, 3, 2]
    """
    turns = [turn for trajectory in group.trajectories for turn in trajectory.turns]
    past = grounded(group.history, {turn.anchor for turn in turns}) if group.history and with_history else []
    moves = [(turn.anchor, turn.action) for turn in turns] + [(p.anchor, p.action) for p in past]
    states = tuple(sorted({anchor for anchor, _ in moves}))
    state_index = {state: row for row, state in enumerate(states)}
    pair_index = {pair: row for row, pair in enumerate(sorted(set(moves)))}
    pair_state = np.array([state_index[anchor] for anchor, _ in pair_index], dtype=np.int64)
    move_pair = np.array([pair_index[move] for move in moves], dtype=np.int64)
    target = np.concatenate([_targets(group, state_index, truncation, won), _ends(past, state_index)])
    edges, row = np.unique(move_pair * (len(states) + 3) + target, return_inverse=True)
    return TransitionGraph(
        states=states,
        pair_index=pair_index,
        pair_state=pair_state,
        edge_pair=edges // (len(states) + 3),
        edge_target=edges % (len(states) + 3),
        # The group's whole numbers come first: their sums are exact in any order of the trajectories.
        edge_count=_sums(row, np.concatenate([np.ones(len(turns)), [p.count for p in past]]), len(edges)),
        turn_edge=row[: len(turns)],
    )


def solve_values(graph: TransitionGraph, *, beta: float, reward: Floats | None = None) -> GraphValues:
    """Policy evaluation on the empirical process by one sparse solve (CRBC, Ren et al. 2026).

    With mu(a|s) = N(s,a)/N(s) and P(x|s,a) = N(s,a,x)/N(s,a):

        V = (I - beta M)^-1 b,   M(s,s') = sum_a mu P(s'|s,a),   b(s) = beta sum_a mu sum_x P(x|s,a) reward(s,a,x)
        Q(s,a) = beta sum_x P(x|s,a) (reward(s,a,x) + V(x)),   V(terminal) = 0
        sigma(s)^2 = sum_a mu (Q - V)^2

    Cycles are fine: for 0 < beta < 1 the matrix is strictly diagonally dominant, so the solution exists and is unique.
    Ours: a state that nobody acted in, where a trajectory was cut off, has the mean of V over all visits, solved for
    together with V (`mean_value`). Of it nothing is known but that the policy came there; 0 would call it a failure,
    and to leave the transition out would leave its action without a value beside those that led to a known end.

    Args:
        reward: `[E]` what an edge pays; 1 for those that end in success and 0 for all others if None, as published.

    >>> values = solve_values(build_graph(CreditGroup.from_walks("A x B p B success", "A y C failure")), beta=0.5)
    >>> values.value.tolist(), values.q.tolist()  # V(B) = 0.5, Q(A, x) = 0.5 V(B), V(A) = Q(A, x) / 2
    ([0.125, 0.5], [0.25, 0.0, 0.5])
    """
    pays = graph.won if reward is None else reward
    num_states = len(graph.states)
    edge_state = graph.edge_state
    # mu(a|s) P(x|s,a) = N(s,a,x) / N(s)
    share = graph.edge_count / graph.state_visits[edge_state]
    inner = graph.edge_target < num_states
    m = csc_array(
        (share[inner], (edge_state[inner], graph.edge_target[inner])),
        shape=(num_states, num_states),
    )
    matrix = csc_array(eye_array(num_states) - beta * m)
    value = spsolve(matrix, beta * _sums(edge_state, share * pays, num_states))
    unknown = graph.edge_target == num_states + 2
    if np.any(unknown):
        # V = value + mean of V * per_mean, and the mean of both sides gives the mean of V.
        per_mean = spsolve(matrix, beta * _sums(edge_state, share * unknown, num_states))
        value = value + mean_value(graph, value) / (1 - mean_value(graph, per_mean)) * per_mean
    if not np.any(pays[inner | unknown]):
        # A value is a discounted mean of what the ends are worth; rounding may leave their range by the last place.
        value = np.clip(value, min(0.0, float(pays.min())), max(0.0, float(pays.max())))
    return _judged(graph, value, _backup(graph, value, beta=beta, reward=pays))


def visit_local_values(graph: TransitionGraph, realised: Floats) -> GraphValues:
    """Monte Carlo values: means of what was realised after the visits themselves, V^(0) of CRBC.

    Args:
        realised: `[N]` discounted return from each turn of the group on.

    Raises:
        ValueError: the graph holds a history, whose returns nobody knows.

    >>> graph = build_graph(CreditGroup.from_walks("A x B p B success", "A y B q B failure"))
    >>> visit_local_values(graph, np.array([0.25, 0.5, 0.0, 0.0])).q.tolist()  # (A, x), (A, y), (B, p), (B, q)
    [0.25, 0.0, 0.5, 0.0]
    """
    if not np.array_equal(graph.edge_count, np.bincount(graph.turn_edge, minlength=len(graph.edge_count))):
        raise ValueError("the graph holds past transitions: what was realised after them is not known")
    # Summed in an order that does not depend on the trajectories'.
    order = np.lexsort((realised, graph.turn_pair))
    pair, returns = graph.turn_pair[order], realised[order]
    q = np.bincount(pair, weights=returns) / np.bincount(pair)
    state = graph.pair_state[pair]
    return _judged(graph, np.bincount(state, weights=returns) / np.bincount(state), q)


def backed_up(graph: TransitionGraph, values: GraphValues, *, beta: float, depth: int, reward: Floats) -> GraphValues:
    """`depth` Bellman backups of `values`: V^(K) = T^K V^(0), Q^(K) = B V^(K-1) of CRBC; `values` itself for 0.

    Args:
        reward: `[E]` as in `solve_values`.

    >>> graph = build_graph(CreditGroup.from_walks("A x B p B success", "A y B q B failure"))
    >>> start = visit_local_values(graph, np.array([0.25, 0.5, 0.0, 0.0]))
    >>> backed_up(graph, start, beta=0.5, depth=1, reward=graph.won).q.tolist()  # both ways from A lead to B
    [0.125, 0.125, 0.5, 0.0]
    """
    value, q, mu = values.value, values.q, graph.mu
    for _ in range(depth):
        q = _backup(graph, value, beta=beta, reward=reward)
        value = _sums(graph.pair_state, mu * q, len(graph.states))
    return _judged(graph, value, q)


def mean_value(graph: TransitionGraph, value: Floats) -> float:
    """Mean over all visits of the graph of `value` `[S]`.

    >>> graph = build_graph(CreditGroup.from_walks("A x A x B y C success"))
    >>> mean_value(graph, np.array([0.25, 1.0]))
    0.5
    """
    visits = graph.state_visits
    return float(np.dot(visits, value) / visits.sum())


def mean_on_edges(graph: TransitionGraph, values: Floats) -> Floats:
    """`[E]` mean of what was seen in the group's turns on each edge; 0 on edges of the history alone.

    Args:
        values: `[N]`, one number for each turn of the group.

    >>> graph = build_graph(CreditGroup.from_walks("A x B success", "A x B success", "A y B failure"))
    >>> mean_on_edges(graph, np.array([3.0, 1.0, -1.0])).tolist()
    [2.0, -1.0]
    """
    # Summed in an order that does not depend on the trajectories'.
    order = np.lexsort((values, graph.turn_edge))
    count = np.bincount(graph.turn_edge, minlength=len(graph.edge_count))
    mean: Floats = _sums(graph.turn_edge[order], values[order], len(graph.edge_count)) / np.maximum(count, 1)
    return mean


def _targets(
    group: CreditGroup, state_index: dict[str, int], truncation: Truncation, won: Sequence[bool] | None
) -> Ints:
    """`[N]` row of where each turn led: the state of the next turn, a terminal, or where it was cut off."""
    num_states = len(state_index)
    rows: list[int] = []
    for i, trajectory in enumerate(group.trajectories):
        rows += [state_index[turn.anchor] for turn in trajectory.turns[1:]]
        has_won = trajectory.outcome == "success" if won is None else won[i]
        if truncation == "bootstrap" and trajectory.outcome == "truncated" and not has_won:
            rows.append(state_index.get(trajectory.turns[-1].next_anchor, num_states + 2))
        else:
            rows.append(num_states + (not has_won))
    return np.array(rows, dtype=np.int64)


def _ends(past: list[PastTransition], state_index: dict[str, int]) -> Ints:
    """Row of the state or terminal that each past transition led to."""
    rows = [len(state_index) + (not p.won) if p.target is None else state_index[p.target] for p in past]
    return np.array(rows, dtype=np.int64)


def _backup(graph: TransitionGraph, value: Floats, *, beta: float, reward: Floats) -> Floats:
    """`[P]` beta * expectation of what a pair paid and where it led."""
    target_value = np.append(value, [0.0, 0.0, mean_value(graph, value)])[graph.edge_target] + reward
    backup = _sums(graph.edge_pair, graph.edge_count * target_value, len(graph.pair_index))
    expected: Floats = beta * backup / graph.pair_visits
    return expected


def _judged(graph: TransitionGraph, value: Floats, q: Floats) -> GraphValues:
    """The values with the spread of the actions' around their state's."""
    spread = graph.mu * (q - value[graph.pair_state]) ** 2
    variance = _sums(graph.pair_state, spread, len(graph.states))
    return GraphValues(value=value, q=q, sigma=np.sqrt(variance))


def _sums(rows: Ints, weights: Floats, size: int) -> Floats:
    """`[size]` sum of the weights in each row."""
    return np.bincount(rows, weights=weights, minlength=size).astype(np.float64)
