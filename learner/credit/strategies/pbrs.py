"""Potential-based reward shaping: a turn earns its return-to-go less what its state already promised.

The potential says how promising a state is; a wrong potential slows learning but does not change which policy is best.
That holds for the shaped rewards. The trajectory advantage and the batch scale are no part of the guarantee.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from milepost.learner.credit.assignment import Credit, CreditGroup, Floats, Need, Scaling
from milepost.learner.credit.comparison import combined, flat_turns
from milepost.learner.credit.gae import discounted_sums
from milepost.learner.credit.graph import build_graph, mean_on_edges, mean_value, solve_values
from milepost.learner.credit.readings import mean_by_anchor, required, turn_rewards
from milepost.learner.credit.settings import GraphSettings

Potential = Literal["graph", "progress", "value"]


def shaping(potential: Floats, *, gamma: float) -> Floats:
    """Shaping rewards `F_t = gamma Phi(s_{t+1}) - Phi(s_t)`, for moving between states (Ng et al., ICML 1999).

    Args:
        potential: `[T + 1]`, of the state before each turn and of the terminal, which must be 0 for invariance.

    Returns:
        `[T]`.

    >>> shaping(np.array([0.0, 0.5, 0.0]), gamma=0.5).tolist()
    [0.25, -0.5]
    """
    return gamma * potential[1:] - potential[:-1]


def shaped_returns(rewards: Floats, potential: Floats, *, gamma: float, rest: float = 0.0) -> Floats:
    """Discounted returns-to-go `[T]` of `r + F`, which telescope to `G_t - Phi(s_t)`.

    Args:
        rewards: `[T]`.
        potential: `[T]`, of the state before each turn.
        rest: potential after the last turn; every terminal has 0, what was cut off may have more.

    >>> shaped_returns(np.array([0.0, 1.0]), np.array([0.0, 0.5]), gamma=0.5).tolist()  # 0.5 - 0 and 1 - 0.5
    [0.5, 0.5]
    """
    return discounted_sums(rewards + shaping(np.append(potential, rest), gamma=gamma), rate=gamma)


class PBRSConfig(GraphSettings):
    """A turn earns its return-to-go less the potential of its state."""

    strategy: Literal["pbrs"] = Field(
        "pbrs", description="Potential-based reward shaping: return-to-go less the potential of the turn's state"
    )
    potential: Potential = Field(
        "graph",
        description="Shaping potential: graph, the discounted success probability in the group; progress, the "
        "environment's; value, a critic's",
    )
    gamma: float = Field(0.98, gt=0, le=1, description="Discount factor gamma per turn, also inside the graph")

    @model_validator(mode="after")
    def _the_potential_fits(self) -> Self:
        if self.potential == "graph" and self.gamma == 1:
            raise ValueError("gamma is 1, but values of a graph with loops need a discount: choose gamma < 1")
        if self.potential != "graph" and self.history_decay:
            raise ValueError(f"history_decay has no effect on potential {self.potential}: set it to 0")
        if self.potential != "graph" and self.truncation == "bootstrap":
            raise ValueError(f"truncation = bootstrap needs potential graph: {self.potential} says nothing of the rest")
        return self


class PBRS:
    """Potential-based shaping (Ng, Harada and Russell, ICML 1999; as values: Wiewiora 2003).

    Idea: pay for getting closer when it happens, in a currency that cancels out over the whole episode.

        F(s, s')    = gamma Phi(s') - Phi(s)         Phi(terminal) = 0, for success, failure and truncation alike
        A_S(i, t)   = sum_l gamma^l (r + F)_{t+l} = G_t - Phi(s_t)
        A[i, t]     = w_trajectory * A_i + w_step * A_S(i, t)

    Phi is one of: `graph`, the discounted probability of success V(s) of the group's transition graph (`solve_values`
    with beta = gamma; V discounts the closing turn, too, where G does not), or where the environment reports no
    success the discounted return from s on, then without history; `progress`, the share of the way that the
    environment reports after the previous turn, 0 before the first; `value`, a critic's estimate. Published: F and its
    invariance. Ours: the choice of potentials, and the use as a step advantage. It is not standardised within states or
    groups, because only a constant per state is harmless. With gamma = 1 and trajectory returns alone, shaping would
    add -Phi(s_0) and change nothing; so it is consumed turn by turn. An invalid turn loses `invalid_penalty` from its
    reward. Under `truncation = "bootstrap"` (ours) a truncated trajectory does not end: Phi of the state it was cut off
    in stands for the rest, in V and in A_S. Every turn counts as covered: its state's potential is an estimate of its
    own. A critic that serves as potential learns the returns G_t.
    """

    def __init__(self, config: PBRSConfig) -> None:
        self._config = config

    @property
    def requires(self) -> frozenset[Need]:
        """What the configured potential reads."""
        needs: dict[Potential, frozenset[Need]] = {
            "graph": frozenset(),
            "progress": frozenset({"progress"}),
            "value": frozenset({"critic"}),
        }
        return needs[self._config.potential]

    @property
    def scaling(self) -> Scaling:
        """Whitened where the potential is a critic's: what it does not know yet is the same for all turns."""
        return "whiten_turns" if self._config.potential == "value" else "unit_rms"

    def assign(self, group: CreditGroup) -> Credit:
        """Trajectory and step advantages. Raises ValueError where a turn lacks what the potential reads, naming it.

        >>> group = CreditGroup.from_walks("A x B p B success", progress=[0.5, 1.0])
        >>> credit = PBRS(PBRSConfig(potential="progress", gamma=0.5)).assign(group)
        >>> [x.tolist() for x in credit.step_adv]  # returns 0.5 and 1, potentials 0 and 0.5
        [[0.5, 0.5]]
        """
        config = self._config
        potential, rest, state_value = self._potential(group)
        step_adv = [
            shaped_returns(
                turn_rewards(trajectory, invalid_penalty=config.invalid_penalty), phi, gamma=config.gamma, rest=last
            )
            for trajectory, phi, last in zip(group.trajectories, potential, rest, strict=True)
        ]
        flat = np.concatenate(step_adv)
        credit = combined(
            group,
            config,
            flat,
            np.ones(len(flat), dtype=np.bool_),
            state_value=state_value,
            diagnostics={"potential_max": float(max(np.max(phi) for phi in potential))},
        )
        if config.potential != "value":
            return credit
        returns = [adv + phi for adv, phi in zip(step_adv, potential, strict=True)]
        return replace(credit, value_targets=tuple(tuple(np.split(g, len(g))) for g in returns))

    def _potential(self, group: CreditGroup) -> tuple[tuple[Floats, ...], list[float], dict[str, float]]:
        """G arrays `[T_i]` of Phi before each turn, G of it after the last, and every state's estimate, if any."""
        ended = [0.0] * len(group.trajectories)
        if self._config.potential == "progress":
            return tuple(np.append(0.0, after[:-1]) for after in required(group, "progress")), ended, {}
        if self._config.potential == "value":
            values = required(group, "value")
            return values, ended, mean_by_anchor(group, values)
        reports = group.reports_success
        graph = build_graph(group, truncation=self._config.truncation, with_history=reports)
        reward = None if reports else mean_on_edges(graph, np.array([turn.reward for turn in flat_turns(group)]))
        solved = solve_values(graph, beta=self._config.gamma, reward=reward).value
        state_value = dict(zip(graph.states, solved.tolist(), strict=True))
        potential = tuple(
            np.array([state_value[turn.anchor] for turn in trajectory.turns]) for trajectory in group.trajectories
        )
        if self._config.truncation == "failure":
            return potential, ended, state_value
        usual = mean_value(graph, solved)
        rest = [
            state_value.get(t.turns[-1].next_anchor, usual) if t.outcome == "truncated" else 0.0
            for t in group.trajectories
        ]
        return potential, rest, state_value
