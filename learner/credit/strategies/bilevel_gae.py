"""Bi-level GAE: generalised advantages over turns first, then over the tokens inside each turn.

It needs a critic that estimates a value before every token. No other rollout of the group is looked at.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from milepost.learner.credit.assignment import Credit, CreditGroup, Floats, Need, Scaling
from milepost.learner.credit.baseline import outcome_diagnostics, trajectory_advantages
from milepost.learner.credit.gae import gae
from milepost.learner.credit.readings import mean_by_anchor, required_token_values, turn_rewards
from milepost.learner.credit.settings import CreditSettings


class BiLevelGAEConfig(CreditSettings):
    """Bi-level GAE: every token earns its generalised advantage inside its turn, and the turn among turns."""

    strategy: Literal["bilevel_gae"] = Field(
        "bilevel_gae",
        description="Bi-level GAE: generalised advantages of a critic over turns, then over the tokens of a turn",
    )
    gamma_turn: float = Field(0.95, gt=0, le=1, description="Discount factor gamma per turn")
    lambda_turn: float = Field(
        1.0, ge=0, le=1, description="GAE lambda over turns: 0 looks one turn ahead, 1 takes the whole return"
    )
    gamma_token: float = Field(1.0, gt=0, le=1, description="Discount factor gamma per token inside a turn")
    lambda_token: float = Field(
        1.0,
        ge=0,
        le=1,
        description="GAE lambda over the tokens of a turn: 0 looks one token ahead, 1 to the end of the turn",
    )


class BiLevelGAE:
    """Generalised advantage estimation on two levels (public code of VAGEN and RAGEN).

    Idea: one discount for tokens and turns either forgets distant turns or blurs the turns into each other. So turns
    pass credit to each other at one rate, and each turn hands what it got to its tokens at another.

        delta_k = r_k + gamma_turn V(e_{k+1}) - V(e_k)            e_k the last token of turn k, V after the end = 0
        A_k     = delta_k + gamma_turn lambda_turn A_{k+1}
        tokens of turn k, with A_k + V(e_k) as the reward of its last one and 0 elsewhere, nothing behind it:
        A_j     = d_j + gamma_token lambda_token A_{j+1},  d_j = r_j + gamma_token V_{j+1} - V_j
        target of the critic before token j = A_j + V_j

    The loss uses the token advantages (`token_total`), whitened over the tokens of a batch. `total` is their mean per
    turn and `step_adv` is A_k; both are for people. `traj_adv` is the group's GRPO advantage, no part of the total.

    Ours: a turn is a record of its own, so its end is known. The reference code finds ends by `reward != 0`: a turn
    without reward is then merged into the next one and never bootstraps, and its numbers differ from ours. An invalid
    turn loses `invalid_penalty` from its reward; a truncated trajectory counts as ended.
    """

    requires: ClassVar[frozenset[Need]] = frozenset({"critic"})
    scaling: ClassVar[Scaling] = "whiten_tokens"

    def __init__(self, config: BiLevelGAEConfig) -> None:
        self._config = config

    def assign(self, group: CreditGroup) -> Credit:
        """Advantages and targets of every token. Raises ValueError where a turn has no token values, naming it.

        >>> values = [(0.5, 0.25), (0.5,)]
        >>> group = CreditGroup.from_walks("A x B p B success", num_tokens=[2, 1], token_values=values)
        >>> credit = BiLevelGAE(BiLevelGAEConfig(gamma_turn=1.0)).assign(group)
        >>> [x.tolist() for x in credit.step_adv]  # deltas 0.25 and 0.5
        [[0.75, 0.5]]
        >>> [[x.tolist() for x in turns] for turns in credit.token_total]  # the first turn's last token is worth 1
        [[[0.5, 0.75], [0.5]]]
        """
        config = self._config
        values = required_token_values(group)
        rewards = [turn_rewards(t, invalid_penalty=config.invalid_penalty) for t in group.trajectories]
        step_adv = tuple(self._over_turns(r, v) for r, v in zip(rewards, values, strict=True))
        tokens = tuple(
            tuple(self._over_tokens(a + v[-1], v) for a, v in zip(steps, turns, strict=True))
            for steps, turns in zip(step_adv, values, strict=True)
        )
        return Credit(
            traj_adv=trajectory_advantages(
                group.returns, baseline="grpo", penalties=group.penalties(config.invalid_penalty)
            ),
            step_adv=step_adv,
            coverage=tuple(np.ones(len(a), dtype=np.int8) for a in step_adv),
            total=tuple(np.array([np.mean(x) for x in turns]) for turns in tokens),
            state_value=mean_by_anchor(group, tuple(np.array([v[0] for v in turns]) for turns in values)),
            diagnostics=outcome_diagnostics(group) | {"coverage": 1.0},
            token_total=tokens,
            value_targets=tuple(
                tuple(a + v for a, v in zip(turns, estimates, strict=True))
                for turns, estimates in zip(tokens, values, strict=True)
            ),
        )

    def _over_turns(self, rewards: Floats, values: tuple[Floats, ...]) -> Floats:
        """`[T]` A_k of one trajectory from its turn rewards `[T]` and T arrays of token values."""
        at_ends = np.array([v[-1] for v in values])
        return gae(rewards, at_ends, gamma=self._config.gamma_turn, lam=self._config.lambda_turn)

    def _over_tokens(self, target: float, values: Floats) -> Floats:
        """`[num_tokens]` A_j of one turn whose last token is worth `target`."""
        rewards = np.zeros(len(values))
        rewards[-1] = target
        return gae(rewards, values, gamma=self._config.gamma_token, lam=self._config.lambda_token)
