"""G2PO: a turn is judged by the value of the state it led to, within its own state and within the whole group.

A state's value is the mean of what its visits went on to earn, so visits share what they learned one step ahead; it is
not carried further through the graph, as `milepost.learner.credit.strategies.crbc` does.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from milepost.learner.credit.assignment import Credit, CreditGroup, Floats, Need, Scaling
from milepost.learner.credit.comparison import Ints, Scale, combined, compare, flat_turns, labels
from milepost.learner.credit.returns import end_worth, turn_penalties
from milepost.learner.credit.settings import StepSettings


class G2POConfig(StepSettings):
    """A turn's credit is the value of where it led, compared within its state and within the group."""

    strategy: Literal["g2po"] = Field(
        "g2po", description="G2PO: value of the next state, compared within state and group"
    )
    gamma: float = Field(0.95, gt=0, le=1, description="Discount factor gamma per turn, of success")
    scale: Scale = Field(
        "std",
        description="Advantage normalisation of both comparisons: std divides by it, none only subtracts the mean",
    )


class G2PO:
    """G2PO (arXiv 2606.22995).

        V(s)   = mean over all visits of s of gamma^(T - t) * [its trajectory succeeds]
        v'     = V(s') of the state the turn led to; 1 after the last turn of a success, 0 after that of a failure
        c1     = v', standardised (ddof=1) over all visits of the anchor, less the invalid turn's penalty; one visit: 0
        c2     = v' - V(s), standardised (ddof=1) over all turns of the group
        A[i,t] = w_trajectory * A_i + w_step * (c1 + c2)

    c2 judges every turn, also in a state met once, and mixes states of different scale; it is not discounted, so even
    a turn along the only way to success gains. Published: gamma .95, weights (1, 1), penalty .1, scale std on ALFWorld.

    Ours, so numbers differ from the public code. Success is the recorded outcome and counts 1: there it is a reward of
    exactly 10, which shaped and partial rewards never meet, and V uses the return. Rewards move A_i only, but where the
    environment reports no success: there an end counts by its return's place in the group (`end_worth`). The penalty
    thus weighs .1 of a success instead of .01, and it is compared beside v' instead of in it (`compare`). A_i is
    computed as in `StarPO`, once per trajectory; no epsilon shrinks a quotient.
    """

    requires: ClassVar[frozenset[Need]] = frozenset()
    scaling: ClassVar[Scaling] = "unit_rms"

    def __init__(self, config: G2POConfig) -> None:
        self._config = config

    def assign(self, group: CreditGroup) -> Credit:
        """Trajectory and step advantages, with V(s) for every state the group acted in.

        >>> group = CreditGroup.from_walks("A x B p B success", "A y C failure")
        >>> credit = G2PO(G2POConfig(gamma=0.5, scale="none")).assign(group)
        >>> credit.state_value  # v' is 0.5, 1 and 0
        {'A': 0.125, 'B': 0.5}
        >>> [x.tolist() for x in credit.step_adv]  # c1: 0.25, 0, -0.25; c2: 0.375, 0.5, -0.125 less their mean 0.25
        [[0.375, 0.25], [-0.625]]
        """
        config = self._config
        turns = flat_turns(group)
        states = labels([turn.anchor for turn in turns])
        worth = end_worth(group)
        value = _visit_values(group, states, worth, gamma=config.gamma)
        here = value[states]
        # A turn leads to the state of the next one; what follows the last turn of a trajectory is its end.
        ahead = np.append(here[1:], 0.0)
        last = np.cumsum([len(trajectory.turns) for trajectory in group.trajectories]) - 1
        ahead[last] = worth
        penalties = turn_penalties(group, invalid_penalty=config.invalid_penalty)
        in_state, has_peer = compare(ahead, states, scale=config.scale, penalties=penalties)
        in_group, has_company = compare(ahead - here, np.zeros_like(states), scale=config.scale)
        return combined(
            group,
            config,
            in_state + in_group,
            has_peer | has_company,
            state_value={turn.anchor: float(v) for turn, v in zip(turns, here, strict=True)},
            diagnostics={"states": float(len(value)), "singleton_share": float(np.mean(~has_peer))},
        )


def _visit_values(group: CreditGroup, states: Ints, worth: Floats, *, gamma: float) -> Floats:
    """V of every label in `states` `[N]`, with `worth` `[G]` of the ends."""
    ends = [
        gamma ** np.arange(len(trajectory.turns), 0, -1) * each
        for trajectory, each in zip(group.trajectories, worth, strict=True)
    ]
    seen = np.concatenate(ends)
    # Summing in order of size makes the result independent of the trajectories' order.
    order = np.argsort(seen)
    mean: Floats = np.bincount(states[order], weights=seen[order]) / np.bincount(states)
    return mean
