"""CRBC: a turn earns what its state transition was worth, judged by all rollouts of the group together.

The step advantage needs states that several actions were tried in; elsewhere it is 0 and only the trajectory advantage
speaks. Under stochastic transitions or from few visits it is a noisy estimate, not causal credit.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from milepost.learner.credit.agreement import graph_diagnostics
from milepost.learner.credit.assignment import Credit, CreditGroup, Floats, Need, Scaling
from milepost.learner.credit.comparison import combined, flat_turns, per_trajectory
from milepost.learner.credit.gae import discounted_sums
from milepost.learner.credit.graph import (
    GraphValues,
    TransitionGraph,
    backed_up,
    build_graph,
    mean_on_edges,
    solve_values,
    visit_local_values,
)
from milepost.learner.credit.returns import at_ends
from milepost.learner.credit.settings import GraphSettings, Truncation

Objective = Literal["auto", "success", "return"]

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
        0.01,
        gt=0,
        description="Minimum standard deviation of Q over a state's actions that a step advantage is divided by",
    )
    truncation: Truncation = Field(
        "bootstrap",
        description="Truncation handling: bootstrap, a trajectory that was cut off is worth what the state it was cut "
        "off in is worth; failure, a time limit is part of the task",
    )
    objective: Objective = Field(
        "auto",
        description="Value function: what a state's value predicts, the probability of success or the return; auto: "
        "success where the environment reports it (info['success']), else the return",
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
                "history_decay needs objective 'auto' or 'success' and no depth: of past transitions only the outcome "
                "is kept"
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
    credit, and A_S averages to 0 over all visits of a state. Published: the closure, the scale with `sigma_min` .1, a
    truncated trajectory as a failed one (`truncation = "failure"`), the weights (1, 5), beta .98, and `depth` K:
    V^(K) = T^K V^(0), Q^(K) = B V^(K-1), where V^(0)(s) is the mean of beta^(T-t) R over the visits of s; for K = 0,
    Q^(0) is that mean over the visits of (s, a).

    Ours by default, because the published values throw signal away where ways are long: `sigma_min` .01, since far from
    the goal all values lie close together, and `truncation = "bootstrap"`. A trajectory that was cut off leads on to
    the state it was cut off in: V is solved as if the group went on from there, and a state that nobody acted in has
    the mean value of the group (`solve_values`). V^(0) of a finite depth counts it as having earned nothing more.

    Ours: an unparsable response is an action of its own (`INVALID`), so it is compared with the valid ones; success
    is the outcome that the environment reported instead of R = 1, so shaped rewards move the trajectory advantage only;
    A_i is computed as in `StarPO`.

    Ours also, where the environment reports no success: V is the return from a state on, for a sum of graded rewards
    above 0 is no success. An edge is then worth the mean reward of its turns, without penalties, and `sigma_min` is a
    share of the largest return of the group. `objective` can ask for either. A history, of which only outcomes are
    known, is left out there.

    Ours, and off by default:

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
        config = self._config
        if group.history and (config.objective == "return" or config.depth is not None):
            raise ValueError(
                f"group {group.task_id} has a history, of which only the outcomes are known: "
                "use objective 'success' without a depth"
            )
        by_success = config.objective == "success" or (config.objective == "auto" and group.reports_success)
        rewards = _rewards(group, by_success=by_success)
        graph = build_graph(group, truncation=config.truncation, with_history=by_success)
        values = self._values(group, graph, rewards, by_success=by_success)
        largest = float(np.max(np.abs(group.returns)))
        unit = 1.0 if by_success or largest < ROUNDING else largest
        pair_adv = self._pair_advantages(graph, values, unit)
        pair_covered = graph.num_actions[graph.pair_state] >= 2
        turn_pair = graph.turn_pair
        visits = np.bincount(turn_pair, minlength=len(pair_adv))
        return combined(
            group,
            config,
            pair_adv[turn_pair],
            pair_covered[turn_pair],
            state_value=dict(zip(graph.states, values.value.tolist(), strict=True)),
            diagnostics=graph_diagnostics(group, graph)
            | {
                "step_adv_rms": math.sqrt(float(np.sum(visits * pair_adv**2)) / len(turn_pair)),
                "step_adv_max": float(np.max(np.abs(pair_adv[turn_pair]))),
            },
        )

    def _values(self, group: CreditGroup, graph: TransitionGraph, rewards: Floats, *, by_success: bool) -> GraphValues:
        """V, Q and sigma; `rewards` `[N]` are what each turn pays in units of the objective."""
        config = self._config
        on_edges = graph.won if by_success else mean_on_edges(graph, rewards)
        if config.depth is None:
            return solve_values(graph, beta=config.beta, reward=on_edges)
        realised = [config.beta * discounted_sums(r, rate=config.beta) for r in per_trajectory(rewards, group)]
        start = visit_local_values(graph, np.concatenate(realised))
        return backed_up(graph, start, beta=config.beta, depth=config.depth, reward=on_edges)

    def _pair_advantages(self, graph: TransitionGraph, values: GraphValues, unit: float) -> Floats:
        """`[P]` A_S of each state-action pair; 0 in states where one action was tried.

        Args:
            unit: what the objective pays at most; `sigma_min` is a share of it.
        """
        gap = values.q - values.value[graph.pair_state]
        scale = np.maximum(values.sigma, self._config.sigma_min * unit)[graph.pair_state]
        rounding = ROUNDING * max(1.0, float(np.max(np.abs(values.value))))
        informed = (graph.num_actions[graph.pair_state] >= 2) & (np.abs(gap) > rounding)
        trust = graph.pair_visits / (graph.pair_visits + self._config.shrinkage)
        return np.where(informed, trust * gap / scale, 0.0)


def _rewards(group: CreditGroup, *, by_success: bool) -> Floats:
    """`[N]` what each turn pays: 1 for the last one of a success, or its own reward, without penalties."""
    if by_success:
        return at_ends(group, np.array([t.outcome == "success" for t in group.trajectories], dtype=np.float64))
    return np.array([turn.reward for turn in flat_turns(group)], dtype=np.float64)
