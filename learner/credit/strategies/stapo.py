"""A STAPO-style strategy: unusually uncertain turns are judged by whether they heed the trajectory.

This is a reconstruction from the abstract and the table of hyper-parameters; the paper's equations were not available,
so its results are not to be expected of it. Name clash: it is not the STAPO of arXiv 2602.15620, which masks tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from milepost.learner.credit.assignment import Credit, CreditGroup, Floats, Need, Scaling
from milepost.learner.credit.comparison import Bools, Ints, combined, compare, flat_turns, labels
from milepost.learner.credit.readings import missing, required
from milepost.learner.credit.returns import discounted_returns, turn_penalties
from milepost.learner.credit.settings import StepSettings

ROUNDING = 1e-9
"""An entropy that exceeds the fence by less than this, in nats, exceeds it by rounding only."""


class STAPOConfig(StepSettings):
    """Step returns within a state, and a word on the turns whose entropy stands out."""

    strategy: Literal["stapo"] = Field(
        "stapo", description="STAPO: step returns within a state, selective credit for turns of outlying entropy"
    )
    gamma: float = Field(0.95, gt=0, le=1, description="Discount factor gamma per turn, of the step return")
    fence: float = Field(
        1.5, ge=0, description="Outlier fence in interquartile ranges above the third quartile of the entropy"
    )
    w_aware: float = Field(
        0.01,
        ge=0,
        description="Weight of the trajectory-aware reward of outliers: what goal and history added to log-probs",
    )
    w_independent: float = Field(
        0.01,
        ge=0,
        description="Weight of the trajectory-independent penalty of outliers: their entropy above the fence",
    )


@dataclass(frozen=True, slots=True, eq=False)
class Outliers:
    """Which of a group's N turns are unusually uncertain for their state."""

    is_outlier: Bools
    """`[N]`"""
    excess: Floats
    """`[N]` nats above the fence; exactly 0 where the turn is no outlier."""


class STAPO:
    """Selective trajectory-aware credit; reconstructed after STAPO (arXiv 2607.04963, ACL 2026 long 1308).

    Idea: an agent that neglects its trajectory shows it in single turns, and those stand out by their entropy once the
    difficulty of the state is taken off.

        n[i, t]   = h - mean of h over the state's turns in the group (over all turns where the state was met once)
        fence     = Q3(n) + 1.5 (Q3(n) - Q1(n)),  o = 1 where n > fence        numpy's linear quantiles
        A_S[i, t] = (step return - mean) / std within the state + o (w_aware * gain - w_independent * (n - fence))
        A[i, t]   = w_trajectory * A_i + w_step * A_S[i, t]

    h is the mean token entropy of the turn; gain is the mean log-prob of its tokens with goal and history in the
    context less without: negative where the history made the action less likely. Public: the normalised entropy, the
    rule of 1.5 interquartile ranges, a trajectory-aware reward and a trajectory-independent penalty on outliers only,
    group-based step advantages, the weights .01 and omega = 1. Reconstructed: every formula. Ours: omega (`w_step`)
    weighs the selective term, too, so that 0 is StarPO; quartiles of a small group are noisy and no minimum is set.

    The step return is the one of `GiGPO`. Only outliers need `history_gain`, so the second forward pass can skip all
    other turns (`entropy_outliers`).
    """

    requires: ClassVar[frozenset[Need]] = frozenset({"entropy", "history_gain"})
    scaling: ClassVar[Scaling] = "unit_rms"

    def __init__(self, config: STAPOConfig) -> None:
        self._config = config

    def assign(self, group: CreditGroup) -> Credit:
        """Trajectory and step advantages.

        Raises:
            ValueError: a turn has no entropy, or an outlier has no history gain; names group, trajectory and turn.

        >>> walks, gain = ["A x B failure"] * 5, [0.0, 0.0, 0.0, 0.0, -1.0]
        >>> group = CreditGroup.from_walks(*walks, entropy=[1.0, 1.0, 1.0, 1.0, 3.0], history_gain=gain)
        >>> credit = STAPO(STAPOConfig()).assign(group)  # the last turn is 2 nats above the fence
        >>> [x.round(3).tolist() for x in credit.step_adv]  # 0.01 * -1 - 0.01 * 2
        [[0.0], [0.0], [0.0], [0.0], [-0.03]]
        """
        config = self._config
        outliers = entropy_outliers(group, fence=config.fence)
        gain = _gains(group, outliers.is_outlier)
        returns = discounted_returns(group, gamma=config.gamma)
        penalties = turn_penalties(group, invalid_penalty=config.invalid_penalty)
        within_state, has_peer = compare(returns, _states(group), scale="std", penalties=penalties)
        selective = config.w_aware * gain - config.w_independent * outliers.excess
        return combined(
            group,
            config,
            within_state + selective,
            has_peer | outliers.is_outlier,
            state_value={},
            diagnostics={
                "outlier_share": float(np.mean(outliers.is_outlier)),
                "selective_max": float(np.max(np.abs(selective))),
            },
        )


def entropy_outliers(group: CreditGroup, *, fence: float) -> Outliers:
    """Outliers by Tukey's fence: turns whose entropy, less what is usual in their state, lies above it.

    Args:
        fence: interquartile ranges above the third quartile.

    Raises:
        ValueError: a turn has no entropy; names group, trajectory and turn.

    >>> group = CreditGroup.from_walks(*["A x B failure"] * 5, entropy=[1.0, 1.0, 1.0, 1.0, 3.0])
    >>> entropy_outliers(group, fence=1.5).excess.round(3).tolist()
    [0.0, 0.0, 0.0, 0.0, 2.0]
    """
    entropy = np.concatenate(required(group, "entropy"))
    normalised, has_peer = compare(entropy, _states(group), scale="none")
    usual = math.fsum(entropy) / len(entropy)  # exact: the order of the trajectories must not matter
    normalised = np.where(has_peer, normalised, entropy - usual)
    first, third = np.quantile(normalised, [0.25, 0.75])
    excess = normalised - (third + fence * (third - first))
    is_outlier = excess > ROUNDING
    return Outliers(is_outlier=is_outlier, excess=np.where(is_outlier, excess, 0.0))


def _states(group: CreditGroup) -> Ints:
    return labels([turn.anchor for turn in flat_turns(group)])


def _gains(group: CreditGroup, is_outlier: Bools) -> Floats:
    """`[N]` history gain of the outliers, 0 elsewhere. Raises ValueError where an outlier has none."""
    gains = np.zeros(len(is_outlier))
    places = [
        (i, t, turn) for i, trajectory in enumerate(group.trajectories) for t, turn in enumerate(trajectory.turns)
    ]
    for row in np.flatnonzero(is_outlier):
        i, t, turn = places[row]
        if turn.history_gain is None:
            raise missing(group, trajectory=i, turn=t, what="history_gain")
        gains[row] = turn.history_gain
    return gains
