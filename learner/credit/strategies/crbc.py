"""CRBC: a turn earns what its state transition was worth, judged by all rollouts of the group together.

The step advantage needs states that several actions were tried in; elsewhere it is 0 and only the trajectory advantage
speaks. Under stochastic transitions or from few visits it is a noisy estimate, not causal credit.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from milepost.learner.credit.assignment import Credit, CreditGroup, CreditTrajectory, Floats, Need, Scaling
from milepost.learner.credit.comparison import combined
from milepost.learner.credit.graph import (
    GraphValues,
    TransitionGraph,
    backed_up,
    build_graph,
    graph_diagnostics,
    solve_values,
    visit_local_values,
)
from milepost.learner.credit.settings import GraphSettings

ROUNDING = 1e-12
"""A |Q - V| below this share of the largest |V|, or of 1, is an artefact of the solve."""


class CRBCConfig(GraphSettings):
    """Advantage Q(s, a) - V(s) on the group's graph: what a turn's action was worth more than its state."""

    strategy: Literal["crbc"] = Field(
        "crbc", description="Cross-Rollout Bellman Closure: credit for state transitions, judged by the whole group"
    )
    w_step: float = Field(5.0, ge=0, description="Weight of the step advantage")
    beta: float = Field(0.98, gt=0, lt=1, description="Discount factor per turn, of what a trajectory ends with")
    sigma_min: float = Field(
        0.1,
        gt=0,
        description="Minimum standard deviation of Q over a state's actions that a step advantage is divided by",
    )
    objective: Literal["success", "return"] = Field(
        "success", description="Value function: what a state's value predicts, the probability of success or the return"
    )
    shrinkage: float = Field(
        0.0, ge=0, description="Shrinkage k of the factor N/(N+k) on credit that rests on N visits; 0: none"
    )
    depth: int | None = Field(
        None, ge=0, description="Bellman backups of the realised returns; unset: the closure, 0: each visit on its own"
    )

    @model_validator(mode="after")
    def _the_past_is_known_by_its_outcomes_only(self) -> Self:
        if self.history_decay > 0 and (self.objective == "return" or self.depth is not None):
            raise ValueError(
                "history_decay needs objective 'success' and no depth: of past transitions only the outcome is kept"
            )
        return self


class CRBC:
    """Cross-Rollout Bellman Closure (Ren et al. 2026).

    Idea: merge the group's rollouts into one transition graph and evaluate the group's own behaviour on it. A good
    action is then rewarded even if its trajectory failed later, and a useless loop is punished even in one that
    succeeded.

        A_S(s,a) = (Q(s,a) - V(s)) / max(sigma(s), sigma_min)   where at least two actions were tried in s, else 0
        A[i, t]  = w_trajectory * A_i + w_step * A_S(s, a)

    V, Q and sigma come from `solve_values`; A_i from `trajectory_advantages`. All occurrences of (s, a) share their
    credit, and A_S averages to 0 over all visits of a state. Published: the closure, the scale, the weights (1, 5),
    beta .98, and `depth` K: V^(K) = T^K V^(0), Q^(K) = B V^(K-1), where V^(0)(s) is the mean of beta^(T-t) R over the
    visits of s; for K = 0, Q^(0) is that mean over the visits of (s, a).

    Ours: an unparsable response is an action of its own (`INVALID`), so it is compared with the valid ones; success
    is the recorded outcome instead of R = 1, so shaped rewards move the trajectory advantage only; A_i is computed as
    in `StarPO`. Also ours, and off by default:

    * `objective = "return"`, for real-valued rewards: an edge that ends is worth E[R | edge], the mean return without
      penalties of the trajectories that ended there, instead of 1 or 0. V, sigma and `sigma_min` are then in units of
      the return.
    * `shrinkage` k: A_S is multiplied by N/(N + k), N = N(s, a), because P(x|s,a) from few visits is optimistic. A_S
      then no longer averages to 0 over a state's visits: rare actions move less than frequent ones.
    * history: counts of earlier groups enter P, mu and N (after TIGPO, arXiv 2609.03383). A_S then averages to 0 over
      the group's visits and the past ones together.
    """

    requires: ClassVar[frozenset[Need]] = frozenset()
    scaling: ClassVar[Scaling] = "unit_rms"

    def __init__(self, config: CRBCConfig) -> None:
        self._config = config

    def assign(self, group: CreditGroup) -> Credit:
        """Trajectory and step advantages, with V(s) for every state of the graph.

        Raises:
            ValueError: the group has a history, and the objective is the return or a depth is set.

        >>> group = CreditGroup.from_walks("A x B p B success", "A y C failure")
        >>> credit = CRBC(CRBCConfig(beta=0.5)).assign(group)
        >>> credit.state_value  # Q(A, x) = 0.25, Q(A, y) = 0, sigma(A) = 0.125
        {'A': 0.125, 'B': 0.5}
        >>> [x.tolist() for x in credit.step_adv]
        [[1.0, 0.0], [-1.0]]
        """
        graph = build_graph(group)
        values = self._values(group, graph)
        pair_adv = self._pair_advantages(graph, values)
        pair_covered = graph.num_actions[graph.pair_state] >= 2
        turn_pair = graph.turn_pair
        visits = np.bincount(turn_pair, minlength=len(pair_adv))
        return combined(
            group,
            self._config,
            pair_adv[turn_pair],
            pair_covered[turn_pair],
            state_value=dict(zip(graph.states, values.value.tolist(), strict=True)),
            diagnostics=graph_diagnostics(group, graph)
            | {
                "step_adv_rms": math.sqrt(float(np.sum(visits * pair_adv**2)) / len(turn_pair)),
                "step_adv_max": float(np.max(np.abs(pair_adv[turn_pair]))),
            },
        )

    def _values(self, group: CreditGroup, graph: TransitionGraph) -> GraphValues:
        config = self._config
        if config.objective == "success" and config.depth is None:
            return solve_values(graph, beta=config.beta)
        if group.history:
            raise ValueError(
                f"group {group.task_id} has a history, of which only the outcomes are known: "
                "use objective 'success' without a depth"
            )
        returns = np.array([self._worth(trajectory) for trajectory in group.trajectories])
        end_value = _mean_at_ends(group, graph, returns)
        if config.depth is None:
            return solve_values(graph, beta=config.beta, end_value=end_value)
        to_go = [np.arange(len(trajectory.turns), 0, -1) for trajectory in group.trajectories]
        realised = [r * config.beta**n for r, n in zip(returns, to_go, strict=True)]
        start = visit_local_values(graph, np.concatenate(realised))
        return backed_up(graph, start, beta=config.beta, depth=config.depth, end_value=end_value)

    def _worth(self, trajectory: CreditTrajectory) -> float:
        """What a trajectory ended with, in units of the objective."""
        return trajectory.reward if self._config.objective == "return" else float(trajectory.outcome == "success")

    def _pair_advantages(self, graph: TransitionGraph, values: GraphValues) -> Floats:
        """`[P]` A_S of each state-action pair; 0 in states where one action was tried."""
        gap = values.q - values.value[graph.pair_state]
        scale = np.maximum(values.sigma, self._config.sigma_min)[graph.pair_state]
        rounding = ROUNDING * max(1.0, float(np.max(np.abs(values.value))))
        informed = (graph.num_actions[graph.pair_state] >= 2) & (np.abs(gap) > rounding)
        trust = graph.pair_visits / (graph.pair_visits + self._config.shrinkage)
        return np.where(informed, trust * gap / scale, 0.0)


def _mean_at_ends(group: CreditGroup, graph: TransitionGraph, returns: Floats) -> Floats:
    """`[E]` mean of `returns` `[G]` over the trajectories that ended with an edge; 0 where none did."""
    last = np.cumsum([len(trajectory.turns) for trajectory in group.trajectories]) - 1
    # Summed in an order that does not depend on the trajectories'.
    order = np.lexsort((returns, graph.turn_edge[last]))
    edge, num_edges = graph.turn_edge[last][order], len(graph.edge_count)
    count = np.bincount(edge, minlength=num_edges)
    mean: Floats = np.bincount(edge, weights=returns[order], minlength=num_edges) / np.maximum(count, 1)
    return mean
