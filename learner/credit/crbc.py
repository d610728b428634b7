"""CRBC: a turn earns what its state transition was worth, judged by all rollouts of the group together.

The step advantage needs states that several actions were tried in; elsewhere it is 0 and only the trajectory advantage
speaks. Under stochastic transitions or from few visits it is a noisy estimate, not causal credit.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from milepost.learner.credit.assignment import Credit, CreditGroup, Floats, Need, Scaling
from milepost.learner.credit.baseline import outcome_diagnostics, trajectory_advantages
from milepost.learner.credit.graph import GraphValues, TransitionGraph, build_graph, solve_values
from milepost.learner.credit.settings import StepSettings

ROUNDING = 1e-12
"""Values lie in [0, 1]: a smaller |Q - V| is an artefact of the solve."""


class CRBCConfig(StepSettings):
    """A turn's credit is what its action was worth more than its state."""

    strategy: Literal["crbc"] = Field("crbc", description="credit for state transitions, judged by the whole group")
    w_step: float = Field(5.0, ge=0, description="Weight of the step advantage")
    beta: float = Field(0.98, gt=0, lt=1, description="Discount per turn of the probability of success")
    sigma_min: float = Field(0.1, gt=0, description="Smallest per-state scale a step advantage is divided by")


class CRBC:
    """Cross-Rollout Bellman Closure (Ren et al. 2026).

    Idea: merge the group's rollouts into one transition graph and evaluate the group's own behaviour on it. A good
    action is then rewarded even if its trajectory failed later, and a useless loop is punished even in one that
    succeeded.

        A_S(s,a) = (Q(s,a) - V(s)) / max(sigma(s), sigma_min)   where at least two actions were tried in s, else 0
        A[i, t]  = w_trajectory * A_i + w_step * A_S(s, a)

    V, Q and sigma come from `solve_values`; A_i from `trajectory_advantages`. All occurrences of (s, a) share their
    credit, and A_S averages to 0 over the turns in each state. Published: the closure, the scale, the weights (1, 5),
    beta .98. Ours: an unparsable response is an action of its own (`INVALID`), so it is compared with the valid ones;
    success is the recorded outcome instead of R = 1, so shaped rewards move the trajectory advantage only; A_i is
    computed as in `StarPO`.
    """

    requires: ClassVar[frozenset[Need]] = frozenset()
    scaling: ClassVar[Scaling] = "unit_std"

    def __init__(self, config: CRBCConfig) -> None:
        self._config = config

    def assign(self, group: CreditGroup) -> Credit:
        """Trajectory and step advantages, with V(s) for every state the group acted in."""
        config = self._config
        rewards = group.penalised_rewards(config.invalid_penalty)
        traj_adv = trajectory_advantages(rewards, baseline=config.baseline)
        graph = build_graph(group)
        values = solve_values(graph, beta=config.beta)
        pair_adv = _pair_advantages(graph, values, sigma_min=config.sigma_min)
        pair_covered = graph.num_actions[graph.pair_state] >= 2
        rows = [[graph.pair_index[turn.anchor, turn.action] for turn in t.turns] for t in group.trajectories]
        step_adv = tuple(pair_adv[r] for r in rows)
        return Credit(
            traj_adv=traj_adv,
            step_adv=step_adv,
            coverage=tuple(pair_covered[r].astype(np.int8) for r in rows),
            total=tuple(
                config.w_trajectory * a + config.w_step * step for a, step in zip(traj_adv, step_adv, strict=True)
            ),
            state_value=dict(zip(graph.states, values.value.tolist(), strict=True)),
            diagnostics=outcome_diagnostics(group) | _graph_diagnostics(group, graph, pair_adv),
        )


def _pair_advantages(graph: TransitionGraph, values: GraphValues, *, sigma_min: float) -> Floats:
    """`[P]` A_S of each state-action pair; 0 in states where one action was tried."""
    gap = values.q - values.value[graph.pair_state]
    scale = np.maximum(values.sigma, sigma_min)[graph.pair_state]
    informed = (graph.num_actions[graph.pair_state] >= 2) & (np.abs(gap) > ROUNDING)
    return np.where(informed, gap / scale, 0.0)


def _graph_diagnostics(group: CreditGroup, graph: TransitionGraph, pair_adv: Floats) -> dict[str, float]:
    """How well the anchors suit the task: too fine gives singletons and no coverage, too coarse gives aliasing.

    `coverage`, `singleton_share`: share of turns in a state with several actions, in a state visited once.
    `aliased_share`: share of the repeated (s, a) that were seen to lead to different states.
    """
    num_turns = int(graph.state_visits.sum())
    covered = graph.num_actions >= 2
    successors: dict[int, set[str]] = {}
    for trajectory in group.trajectories:
        for turn in trajectory.turns:
            successors.setdefault(graph.pair_index[turn.anchor, turn.action], set()).add(turn.next_anchor)
    repeated = np.flatnonzero(graph.pair_visits >= 2)
    aliased = sum(len(successors[int(pair)]) > 1 for pair in repeated)
    mean_square = float(np.sum(graph.pair_visits * pair_adv**2)) / num_turns
    return {
        "states": float(len(graph.states)),
        "coverage": float(graph.state_visits[covered].sum()) / num_turns,
        "singleton_share": float(np.count_nonzero(graph.state_visits == 1)) / num_turns,
        "aliased_share": aliased / len(repeated) if len(repeated) else 0.0,
        "step_adv_rms": math.sqrt(mean_square),
        "step_adv_max": float(np.max(np.abs(pair_adv))),
    }
