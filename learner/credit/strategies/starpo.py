"""StarPO: every turn of a trajectory gets the trajectory's advantage within its group.

Idea: the whole interaction is the unit of optimisation, and the other rollouts of the same task are its baseline. It
can't tell the turns of one trajectory apart; strategies that can build on the same trajectory advantage.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from milepost.learner.credit.assignment import Credit, CreditGroup, Need, Scaling
from milepost.learner.credit.baseline import outcome_diagnostics, trajectory_advantages
from milepost.learner.credit.settings import TrajectorySettings


class StarPOConfig(TrajectorySettings):
    """Every turn gets its trajectory's advantage."""

    strategy: Literal["starpo"] = Field(
        "starpo", description="StarPO: each turn gets its trajectory's group-relative advantage"
    )
    w_trajectory: float = Field(1.0, gt=0, description="Weight of the trajectory advantage")


class StarPO:
    """A[i, t] = w_trajectory * A_i, the same for all turns (StarPO, arXiv 2504.20073; GRPO, arXiv 2402.03300).

    Ours: the statistics run once per trajectory instead of once per row, so long trajectories don't weigh more, and no
    epsilon shrinks the result. The format penalty is taken off beside the return and not out of it, so that it never
    makes the deviation it is divided by (`trajectory_advantages`); published is the return less the penalty.
    """

    requires: ClassVar[frozenset[Need]] = frozenset()
    scaling: ClassVar[Scaling] = "unit_rms"

    def __init__(self, config: StarPOConfig) -> None:
        self._config = config

    def assign(self, group: CreditGroup) -> Credit:
        """Trajectory advantages only: step advantages and coverage are 0, no state value is estimated.

        >>> group = CreditGroup.from_walks("A x B p B success", "A y C failure")
        >>> [x.tolist() for x in StarPO(StarPOConfig(baseline="dr_grpo")).assign(group).total]
        [[0.5, 0.5], [-0.5]]
        """
        config = self._config
        penalties = group.penalties(config.invalid_penalty)
        traj_adv = trajectory_advantages(group.returns, baseline=config.baseline, penalties=penalties)
        lengths = [len(trajectory.turns) for trajectory in group.trajectories]
        return Credit(
            traj_adv=traj_adv,
            step_adv=tuple(np.zeros(n) for n in lengths),
            coverage=tuple(np.zeros(n, dtype=np.int8) for n in lengths),
            total=tuple(np.full(n, config.w_trajectory * a) for n, a in zip(lengths, traj_adv, strict=True)),
            state_value={},
            diagnostics=outcome_diagnostics(group),
        )
