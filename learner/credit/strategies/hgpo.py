"""HGPO: as GiGPO, but visits of a state count as better peers the longer the history they share.

The same observation after different histories may be a different situation. A longer shared history makes the
comparison fairer and its group smaller; all of them are averaged, the longer ones weighing more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from milepost.learner.credit.assignment import Credit, CreditGroup, Floats, Need, Scaling
from milepost.learner.credit.baseline import trajectory_advantages
from milepost.learner.credit.comparison import Bools, Ints, combined, compare, flat_turns, labels
from milepost.learner.credit.returns import discounted_returns, turn_penalties
from milepost.learner.credit.settings import StepSettings


class HGPOConfig(StepSettings):
    """A turn's credit is its discounted return, compared with visits that share more and more of its history."""

    strategy: Literal["hgpo"] = Field(
        "hgpo",
        description="Hierarchy-of-Groups Policy Optimization: returns compared within visits that share a history",
    )
    w_trajectory: float = Field(0.0, ge=0, description="Weight of the trajectory advantage")
    gamma: float = Field(0.95, gt=0, le=1, description="Discount factor gamma per turn, of the return")
    history: int = Field(2, ge=0, description="History length K: most states before the current one that peers share")
    alpha: float = Field(
        1.0, ge=0, description="Exponent of the level weights: peers that share k states weigh (k + 1)^alpha"
    )
    include_group: bool = Field(
        False, description="Group level k = 0: average the trajectory advantage in, as of peers that share nothing"
    )


class HGPO:
    """Hierarchy-of-Groups Policy Optimization (arXiv 2602.22817).

        key_k(i,t) = the last k states (s[t-k+1], ..., s[t]),  k = 1 .. min(K + 1, t + 1)
        a_k        = (R[i,t] - mean) / std (ddof=0) over all turns with the same key_k, if there are at least two
        A_S[i,t]   = sum_k w_k a_k / sum_k w_k over those k,  w_k = (k + 1)^alpha
        A[i,t]     = w_trajectory * A_i + w_step * A_S[i,t]

    R is GiGPO's return, with its penalty. Published: K 2 or 4, alpha 1, gamma .95, no separate trajectory advantage
    (hence w_trajectory 0); optionally it joins the average as k = 0 with weight 1.

    Ours, so numbers differ from the public code: a level counts where a turn has peers. There it counts where a_k is
    not 0, so a turn that equals the mean of its nearest peers is judged as if it had none. A_i is computed as in
    `StarPO`, once per trajectory, and no epsilon shrinks a quotient.
    """

    requires: ClassVar[frozenset[Need]] = frozenset()
    scaling: ClassVar[Scaling] = "unit_rms"

    def __init__(self, config: HGPOConfig) -> None:
        self._config = config

    def assign(self, group: CreditGroup) -> Credit:
        """Step advantages, with trajectory advantages where they have a weight; no state value is estimated.

        >>> group = CreditGroup.from_walks("A x B p B success", "A y C failure")
        >>> [x.tolist() for x in HGPO(HGPOConfig(gamma=0.5)).assign(group).step_adv]  # std (ddof=0) of 0.5 and 0: 0.25
        [[1.0, 0.0], [-1.0]]
        """
        config = self._config
        turns = flat_turns(group)
        anchors = labels([turn.anchor for turn in turns])
        position = np.concatenate([np.arange(len(trajectory.turns)) for trajectory in group.trajectories])
        returns = discounted_returns(group, gamma=config.gamma)
        penalties = turn_penalties(group, invalid_penalty=config.invalid_penalty)
        weighted, weight = self._group_level(group)
        depth = np.zeros(len(turns))
        for k, (rows, peers) in enumerate(_shared_histories(anchors, position, longest=config.history + 1), start=1):
            level, judged = compare(returns[rows], peers, scale="std", ddof=0, penalties=penalties[rows])
            weighted[rows] += (k + 1) ** config.alpha * level
            weight[rows] += (k + 1) ** config.alpha * judged
            depth[rows[judged]] = k
        covered: Bools = weight > 0
        return combined(
            group,
            config,
            np.divide(weighted, weight, out=np.zeros(len(turns)), where=covered),
            covered,
            state_value={},
            diagnostics={"states": float(anchors.max() + 1), "shared_history": float(np.mean(depth))},
        )

    def _group_level(self, group: CreditGroup) -> tuple[Floats, Floats]:
        """`[N]` weighted advantages and `[N]` weights of k = 0; all 0 where the level is off or a group of one."""
        config = self._config
        lengths = [len(trajectory.turns) for trajectory in group.trajectories]
        if not config.include_group or len(lengths) < 2:
            return np.zeros(sum(lengths)), np.zeros(sum(lengths))
        penalties = group.penalties(config.invalid_penalty)
        advantages = trajectory_advantages(group.returns, baseline=config.baseline, penalties=penalties)
        return np.repeat(advantages, lengths), np.ones(sum(lengths))


def _shared_histories(anchors: Ints, position: Ints, *, longest: int) -> Iterator[tuple[Ints, Ints]]:
    """For k = 1, 2, ..., `longest`: the turns that have k states up to their own, and labels of those k states.

    Args:
        anchors: `[N]` labels of the states.
        position: `[N]` index of each turn in its trajectory.
    """
    num_anchors = int(anchors.max()) + 1
    key = anchors
    rows = np.arange(len(anchors))
    yield rows, key
    for k in range(2, longest + 1):
        rows = np.flatnonzero(position >= k - 1)
        if not len(rows):
            return
        # A key of k states is the key of k - 1 states of the turn before, and this turn's state.
        peers = np.unique(key[rows - 1] * num_anchors + anchors[rows], return_inverse=True)[1]
        key = np.zeros_like(anchors)
        key[rows] = peers
        yield rows, peers
