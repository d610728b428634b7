"""GraphHCA: a turn earns by how much its transition changed the log-probability of success.

It judges realised transitions, not actions: two occurrences of one action in one state may get opposite credit. Built
for deterministic environments that end at a goal; elsewhere the hindsight ratio is only an approximation.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from milepost.learner.credit.agreement import graph_diagnostics
from milepost.learner.credit.assignment import Credit, CreditGroup, Floats, Need, Scaling
from milepost.learner.credit.comparison import combined, compare
from milepost.learner.credit.graph import TransitionGraph, build_graph, mean_on_edges, mean_value, solve_values
from milepost.learner.credit.returns import at_ends, end_worth
from milepost.learner.credit.settings import GraphSettings


class GraphHCAConfig(GraphSettings):
    """A turn's credit is the change of the log-probability of success, compared with the other turns from its state."""

    strategy: Literal["graphhca"] = Field(
        "graphhca", description="Hindsight credit assignment (GraphHCA): change of the log-probability of success"
    )
    beta: float = Field(0.95, gt=0, lt=1, description="Discount factor per turn, of the probability of success")
    floor: float = Field(
        0.01, gt=0, lt=1, description="Probability floor: smaller ones count as this, so that a logarithm exists"
    )


class GraphHCA:
    """Closed-form hindsight credit assignment on the group's graph (GraphHCA, Zhu et al., Beihang, 2026).

    Idea: where transitions are deterministic, the hindsight ratio h(a|s, success) / mu(a|s) is Phi(s') / Phi(s), with
    Phi the discounted probability of success under the behaviour itself. Its logarithm is a step's credit.

        Phi(s)    = beta sum_a mu(a|s) Phi(s'),   Phi = 1 at success, 0 at no success
        ell(i, t) = log max(Phi(s'), floor) - log max(Phi(s), floor)
        A_S(i, t) = (ell - mean) / std over the group's turns in s (ddof=1); 0 for a single turn or without spread
        A[i, t]   = w_trajectory * A_i + w_step * A_S(i, t)

    Published: beta .95, floor .01, weights (1, 1), the comparison of transitions. Phi is V of `solve_values`.

    Truncation dominates, as published: the last turn of a failed or truncated trajectory falls to the floor, 3 to 5
    nats down, and sets the mean and the deviation of its state. A useless self-loop in the middle of such a trajectory
    then looks good beside the same action at its end (+.576 against -.845 in our example of four rollouts), and
    `floor` sets how much. We keep the comparison per transition, because that is the method; `CRBC` averages over the
    occurrences of an action first and does not have this fault. Ours: `truncation = "bootstrap"` takes a truncated
    trajectory to the state it was cut off in instead.

    Ours: A_i is computed as in `StarPO`; an unparsable response is an action of its own. A history enters Phi; turns
    are compared with the group's turns only. Where the environment reports no success, an end is worth its return's
    place in the group (`end_worth`) and the history, of which only outcomes are known, is left out.
    """

    requires: ClassVar[frozenset[Need]] = frozenset()
    scaling: ClassVar[Scaling] = "unit_rms"

    def __init__(self, config: GraphHCAConfig) -> None:
        self._config = config

    def assign(self, group: CreditGroup) -> Credit:
        """Trajectory and step advantages, with Phi(s) for every state of the graph.

        >>> group = CreditGroup.from_walks("A x B p B success", "A y C failure")
        >>> [x.round(3).tolist() for x in GraphHCA(GraphHCAConfig(beta=0.5)).assign(group).step_adv]
        [[0.707, 0.0], [-0.707]]
        """
        config = self._config
        worth = end_worth(group)
        graph = build_graph(
            group,
            truncation=config.truncation,
            won=(worth == 1).tolist(),
            with_history=group.reports_success,
        )
        reward = graph.won if group.reports_success else mean_on_edges(graph, at_ends(group, worth))
        phi = solve_values(graph, beta=config.beta, reward=reward).value
        change = log_changes(graph, phi, reward=reward, floor=config.floor)
        # In the order of the edges, so that sums do not depend on the order of the trajectories.
        order = np.argsort(graph.turn_edge, kind="stable")
        edge = graph.turn_edge[order]
        step_adv, covered = np.empty(len(order)), np.empty(len(order), dtype=np.bool_)
        _, peers = np.unique(graph.edge_state[edge], return_inverse=True)
        step_adv[order], covered[order] = compare(change[edge], peers, scale="std")
        return combined(
            group,
            config,
            step_adv,
            covered,
            state_value=dict(zip(graph.states, phi.tolist(), strict=True)),
            diagnostics=graph_diagnostics(group, graph),
        )


def log_changes(graph: TransitionGraph, phi: Floats, *, reward: Floats, floor: float) -> Floats:
    """`[E]` log Phi(s') - log Phi(s) of each edge, in nats; Phi counts as `floor` where it is smaller.

    Args:
        phi: `[S]` probabilities of success.
        reward: `[E]` Phi of what an edge that ends leads to, 0 for all others.

    >>> graph = build_graph(CreditGroup.from_walks("A x B p B success", "A y C failure"))
    >>> phi = np.array([0.125, 0.5])
    >>> log_changes(graph, phi, reward=graph.won, floor=0.125).round(3).tolist()  # log 4, log 1, log 2
    [1.386, 0.0, 0.693]
    """
    ahead = np.append(phi, [0.0, 0.0, mean_value(graph, phi)])[graph.edge_target] + reward
    change: Floats = np.log(np.maximum(ahead, floor)) - np.log(np.maximum(phi, floor))[graph.edge_state]
    return change
