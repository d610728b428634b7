"""StepPO: a critic judges every turn as one action, and the estimates are blended over turns.

It needs a critic whose values are about right: while it is untrained, the advantages are little more than returns. No
other rollout of the group is looked at.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from milepost.learner.credit.assignment import Credit, CreditGroup, Need, Scaling
from milepost.learner.credit.baseline import outcome_diagnostics, trajectory_advantages
from milepost.learner.credit.gae import gae
from milepost.learner.credit.readings import mean_by_anchor, required, turn_rewards
from milepost.learner.credit.settings import CreditSettings


class StepPOConfig(CreditSettings):
    """A turn earns its generalised advantage over a critic's values."""

    strategy: Literal["steppo"] = Field("steppo", description="StepPO: generalised advantages of a critic over turns")
    gamma: float = Field(0.99, gt=0, le=1, description="Discount factor gamma per turn")
    gae_lambda: float = Field(
        0.95, ge=0, le=1, description="GAE lambda: 0 looks one turn ahead, 1 takes the whole return"
    )


class StepPO:
    """Step-level generalised advantage estimation (StepPO, arXiv 2604.18401; Turn-PPO, arXiv 2512.17008).

    Idea: an agent decides once per turn, so turns, not tokens, are the steps of the decision process, and the length of
    a response discounts nothing.

        delta_t = r_t + gamma V_{t+1} - V_t      V after the last turn = 0
        A_t     = sum_l (gamma lambda)^l delta_{t+l}
        target of the critic before the turn's first token = A_t + V_t

    V_t is the critic's value before the first sampled token; a later position would have seen part of the action.
    Published: all of it, and whitening over the turns of a batch (`scaling`), so that long responses don't dominate.
    Ours: a truncated trajectory counts as ended, because nobody estimates a value after its last turn; an invalid turn
    loses `invalid_penalty` from its own reward. `traj_adv` is the group's GRPO advantage, reported for comparison and
    no part of the total. `state_value` is the critic's mean over the visits of a state.
    """

    requires: ClassVar[frozenset[Need]] = frozenset({"critic"})
    scaling: ClassVar[Scaling] = "whiten_turns"

    def __init__(self, config: StepPOConfig) -> None:
        self._config = config

    def assign(self, group: CreditGroup) -> Credit:
        """Advantages and critic targets of every turn. Raises ValueError where a turn has no value, naming it.

        >>> group = CreditGroup.from_walks("A x B p B success", value=[0.5, 0.5])
        >>> credit = StepPO(StepPOConfig(gamma=1.0, gae_lambda=0.5)).assign(group)
        >>> [x.tolist() for x in credit.total]  # deltas 0 and 0.5
        [[0.25, 0.5]]
        """
        config = self._config
        values = required(group, "value")
        advantages = tuple(
            gae(
                turn_rewards(trajectory, invalid_penalty=config.invalid_penalty),
                value,
                gamma=config.gamma,
                lam=config.gae_lambda,
            )
            for trajectory, value in zip(group.trajectories, values, strict=True)
        )
        return Credit(
            traj_adv=trajectory_advantages(
                group.returns, baseline="grpo", penalties=group.penalties(config.invalid_penalty)
            ),
            step_adv=advantages,
            coverage=tuple(np.ones(len(a), dtype=np.int8) for a in advantages),
            total=advantages,
            state_value=mean_by_anchor(group, values),
            diagnostics=outcome_diagnostics(group) | {"coverage": 1.0},
            value_targets=tuple(
                tuple(np.array([target]) for target in a + v) for a, v in zip(advantages, values, strict=True)
            ),
        )
