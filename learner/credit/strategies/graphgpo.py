"""GraphGPO: a turn is judged by how far from success the group's own paths say it left the agent.

Distances are best cases: one lucky way defines them, so environments should be deterministic. Judging the expected
case instead is `milepost.learner.credit.strategies.crbc`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from milepost.learner.credit.assignment import Credit, CreditGroup, Floats, Need, Scaling
from milepost.learner.credit.comparison import Ints, combined, compare
from milepost.learner.credit.graph import TransitionGraph, build_graph
from milepost.learner.credit.returns import end_worth
from milepost.learner.credit.settings import GraphSettings, Truncation


class GraphGPOConfig(GraphSettings):
    """A turn's credit is how near to success it led, compared with the other visits of its state."""

    strategy: Literal["graphgpo"] = Field(
        "graphgpo", description="Graph-based Group Policy Optimization: distance to success, by the group's known paths"
    )
    truncation: Truncation = Field(
        "bootstrap",
        description="Truncation handling: bootstrap, a trajectory that was cut off leads to the state it was cut off "
        "in; failure, it leads nowhere",
    )
    omega: float = Field(
        0.1, gt=0, lt=1, description="Discount factor per turn of distance to success; small makes only the best count"
    )


class GraphGPO:
    """Graph-based Group Policy Optimization (arXiv 2605.26684), with history: TIGPO (arXiv 2609.03383).

    Idea: the group's rollouts together know ways to success that none of them took alone.

        d(s)     = fewest known transitions from s to success; without a known way: largest finite d + 1
        R[i,t]   = 10 * omega^d(s'), s' the state the turn led to, success itself after the last turn of a success
        A_S[i,t] = (R[i,t] - mean) / std (ddof=1) over all visits of the anchor; one visit only: 0
        A[i,t]   = w_trajectory * A_i + w_step * A_S[i,t]

    The last turn of a failure leads to the real state it left, so a time-out is not punished for being one (ours:
    `truncation = "failure"` leads that of a truncated trajectory nowhere). Without a
    known success all distances are equal and step advantages 0. Transitions in `CreditGroup.history` shorten
    distances; they never enter a mean. Published: omega .1 on ALFWorld, .2 on WebShop, .8 on Sokoban, weights (1, 1).

    The paper's constant r_success * omega^c, the public code's 10 and its option omega^(d(s') - d(s) + 1) differ by a
    factor per anchor, which standardising takes out. Ours therefore measures d(s') from the anchor's nearest successor:
    the quotient is the same and does not vanish far from the goal, where an epsilon of 1e-6 outweighs 10 * omega^d.
    Ours also: the penalty of an invalid turn stays in A_i, since taken from R it would outweigh R far from the goal;
    success is the recorded outcome, not a reward above 0, and where the environment reports none, the group's largest
    return (then without history); A_i is computed as in `StarPO`. TIGPO is known to us from secondary text only.
    """

    requires: ClassVar[frozenset[Need]] = frozenset()
    scaling: ClassVar[Scaling] = "unit_rms"

    def __init__(self, config: GraphGPOConfig) -> None:
        self._config = config

    def assign(self, group: CreditGroup) -> Credit:
        """Trajectory and step advantages, with omega^d(s) for every state the group acted in (0: no known way).

        >>> group = CreditGroup.from_walks("A x B p B success", "A y C failure")
        >>> credit = GraphGPO(GraphGPOConfig(omega=0.5)).assign(group)
        >>> credit.state_value  # success is two transitions from A and one from B
        {'A': 0.25, 'B': 0.5}
        >>> [x.round(3).tolist() for x in credit.step_adv]
        [[0.707, 0.0], [-0.707]]
        """
        config = self._config
        won = (end_worth(group) == 1).tolist()
        graph = build_graph(group, won=won, with_history=group.reports_success)
        anchors, targets = graph.pair_state[graph.turn_pair], _targets(group, graph, won, config.truncation)
        distance = _distances(graph, anchors, targets)
        known = np.isfinite(distance)
        filled = np.where(known, distance, distance[known].max() + 1)
        nearest = np.full(len(graph.states), np.inf)
        np.minimum.at(nearest, anchors, filled[targets])
        step_adv, covered = compare(config.omega ** (filled[targets] - nearest[anchors]), anchors, scale="std")
        acted = np.unique(anchors)
        return combined(
            group,
            config,
            step_adv,
            covered,
            state_value={graph.states[row]: float(config.omega ** distance[row]) for row in acted},
            diagnostics={
                "states": float(len(acted)),
                "unreachable_share": float(np.mean(~known[acted])),
            },
        )


def _targets(group: CreditGroup, graph: TransitionGraph, won: Sequence[bool], truncation: Truncation) -> Ints:
    """`[N]` row of where each turn led: a state, S for success, S + 1 for a state in which nobody acted.

    The graph ends failures in a terminal; here they end in the state they really left.
    """
    index = {state: row for row, state in enumerate(graph.states)}
    targets = graph.edge_target[graph.turn_edge]
    last = np.cumsum([len(trajectory.turns) for trajectory in group.trajectories]) - 1
    for row, trajectory, ended_well in zip(last, group.trajectories, won, strict=True):
        goes_on = trajectory.outcome == "failure" or truncation == "bootstrap"
        if not ended_well and goes_on:
            targets[row] = index.get(trajectory.turns[-1].next_anchor, len(graph.states) + 1)
    return targets


def _distances(graph: TransitionGraph, anchors: Ints, targets: Ints) -> Floats:
    """`[S + 2]` fewest known transitions to success from every state, from success (0) and from S + 1 (infinity).

    The edges of the graph include history; those of the group's own turns add where failures really ended.
    """
    size = len(graph.states) + 2
    source = np.concatenate([graph.pair_state[graph.edge_pair], anchors])
    target = np.concatenate([graph.edge_target, targets])
    backwards = csr_array((np.ones(len(source)), (target, source)), shape=(size, size))
    distance: Floats = dijkstra(backwards, indices=size - 2, unweighted=True)
    return distance
