"""SALT: turns that several trajectories share get the mean of their advantages; where they part, each keeps its own.

What winners and losers did alike carries no blame and no praise. It sees no further than one transition: a good action
that only losers took is punished like everything else they did alone.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from milepost.learner.credit.assignment import Credit, CreditGroup, Need, Scaling
from milepost.learner.credit.baseline import trajectory_advantages
from milepost.learner.credit.comparison import combined
from milepost.learner.credit.graph import build_graph
from milepost.learner.credit.returns import end_worth
from milepost.learner.credit.settings import StepSettings


class SALTConfig(StepSettings):
    """A turn's credit is the mean advantage of all trajectories that made the same transition."""

    strategy: Literal["salt"] = Field(
        "salt", description="SALT: mean advantage of the trajectories that share a transition"
    )
    w_trajectory: float = Field(0.0, ge=0, description="Weight of the trajectory advantage, which the steps hold too")


class SALT:
    """Step-level advantages by a trajectory graph (inspired by SALT, arXiv 2510.20022, whose text we know in part).

    Idea: merge the trajectories of a group at equal transitions. What they share is neutral between them; what divides
    them is decisive.

        A_S(i, t) = mean of A_j over the trajectories j that took the edge (s, a, s') of turn (i, t)
        A[i, t]   = w_step * A_S(i, t) + w_trajectory * A_i,   w_trajectory = 0 as published

    An edge that one trajectory took keeps that trajectory's advantage; it is not a comparison, so its coverage is 0.

    Ours: the last turn's edge leads to the terminal of its outcome, so a winning and a losing end are never the same
    edge (where the environment reports no success, those with the group's largest return win); a trajectory has one
    vote per edge however often it loops; edges are equal by state and action alone, the published window of past
    turns belongs in the anchor; A_i is computed as in `StarPO`. No history: past trajectories have no advantage in this
    group.
    """

    requires: ClassVar[frozenset[Need]] = frozenset()
    scaling: ClassVar[Scaling] = "unit_rms"

    def __init__(self, config: SALTConfig) -> None:
        self._config = config

    def assign(self, group: CreditGroup) -> Credit:
        """Step advantages per edge; no state value is estimated.

        >>> group = CreditGroup.from_walks("A x B p B success", "A x B q C failure")
        >>> [x.tolist() for x in SALT(SALTConfig(baseline="dr_grpo")).assign(group).step_adv]  # the first is shared
        [[0.0, 0.5], [0.0, -0.5]]
        """
        config = self._config
        penalties = group.penalties(config.invalid_penalty)
        traj_adv = trajectory_advantages(group.returns, baseline=config.baseline, penalties=penalties)
        turn_edge = build_graph(group, won=(end_worth(group) == 1).tolist()).turn_edge
        owner = np.repeat(np.arange(len(traj_adv)), [len(trajectory.turns) for trajectory in group.trajectories])
        votes = np.unique(np.stack([turn_edge, owner]), axis=1)
        edge, advantage = votes[0], traj_adv[votes[1]]
        # Summed in an order that does not depend on the trajectories'.
        order = np.lexsort((advantage, edge))
        num_votes = np.bincount(edge)
        mean = np.bincount(edge[order], weights=advantage[order]) / np.maximum(num_votes, 1)
        shared = num_votes[turn_edge] >= 2
        return combined(group, config, mean[turn_edge], shared, state_value={}, diagnostics={})
