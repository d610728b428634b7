"""GiGPO: turns of different rollouts that stood in the same state are judged by what they went on to earn.

A turn is judged by the rest of its own trajectory: a good action followed by mistakes is punished. States that nobody
else met, often the late ones, leave the turn to the trajectory advantage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import ClassVar, Literal

from pydantic import Field

from milepost.learner.credit.assignment import Credit, CreditGroup, Need, Scaling
from milepost.learner.credit.comparison import Scale, combined, compare, flat_turns, labels
from milepost.learner.credit.returns import discounted_returns, turn_penalties
from milepost.learner.credit.settings import StepSettings


class GiGPOConfig(StepSettings):
    """A turn's credit is its discounted return, compared with the other visits of its state."""

    strategy: Literal["gigpo"] = Field(
        "gigpo", description="Group-in-Group Policy Optimization: returns compared within the visits of a state"
    )
    gamma: float = Field(0.95, gt=0, le=1, description="Discount factor gamma per turn, of the return")
    scale: Scale = Field(
        "std", description="Advantage normalisation within a state: std divides by it, none only subtracts the mean"
    )
    similarity: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Similarity threshold of anchors: at least this alike are one state; 1 compares exactly and "
        "is much faster",
    )


class GiGPO:
    """Group-in-Group Policy Optimization (arXiv 2505.10978).

    Idea: rollouts of one task keep meeting in the same states, so each state forms a comparison group of its own.

        R[i,t]   = sum_{k>=t} gamma^(k-t) r[i,k]
        A_S[i,t] = (R[i,t] - mean) / std (ddof=1) over all visits of the state; one visit only: 0
        less     penalty * [turn t is invalid], compared in the same way
        A[i,t]   = w_trajectory * A_i + w_step * A_S[i,t]

    Several visits by one trajectory count as peers. Published: gamma .95, weights (1, 1), scale std on ALFWorld and
    none on WebShop (there A_i is `baseline = "dr_grpo"`), anchors equal exactly or by SequenceMatcher >= .95.

    Ours, so numbers differ from the public code. A_i is computed once per trajectory: there each turn is a row, so long
    trajectories weigh more, and the penalty sits in the row of the invalid turn, so turns of one trajectory get
    different episode scores. The penalty of a step is published as part of R; here it does not make the deviation that
    it is divided by (`compare`). Anchors are clustered from the most visited down instead of in order of arrival, so
    the result does not depend on the order of the rollouts. SequenceMatcher runs without `autojunk`, which ignores the
    frequent characters of texts from 200 characters on.
    """

    requires: ClassVar[frozenset[Need]] = frozenset()
    scaling: ClassVar[Scaling] = "unit_rms"

    def __init__(self, config: GiGPOConfig) -> None:
        self._config = config

    def assign(self, group: CreditGroup) -> Credit:
        """Trajectory and step advantages; no state value is estimated.

        >>> group = CreditGroup.from_walks("A x B p B success", "A y C failure")
        >>> credit = GiGPO(GiGPOConfig(gamma=0.5, scale="none")).assign(group)  # returns from A on: 0.5 and 0
        >>> [x.tolist() for x in credit.step_adv]
        [[0.25, 0.0], [-0.25]]
        """
        config = self._config
        anchors = [turn.anchor for turn in flat_turns(group)]
        states = labels(anchors if config.similarity == 1 else _representatives(anchors, config.similarity))
        returns = discounted_returns(group, gamma=config.gamma)
        penalties = turn_penalties(group, invalid_penalty=config.invalid_penalty)
        step_adv, covered = compare(returns, states, scale=config.scale, penalties=penalties)
        return combined(
            group,
            config,
            step_adv,
            covered,
            state_value={},
            diagnostics={"states": float(states.max() + 1)},
        )


def _representatives(anchors: Sequence[str], similarity: float) -> list[str]:
    """For each anchor the first representative that is alike; an anchor without one becomes a representative."""
    visits = Counter(anchors)
    representatives: list[str] = []
    chosen: dict[str, str] = {}
    for anchor in sorted(visits, key=lambda a: (-visits[a], a)):
        # The matcher prepares its second text once, for all representatives.
        matcher = SequenceMatcher(None, "", anchor, autojunk=False)
        chosen[anchor] = next((r for r in representatives if _alike(matcher, r, similarity)), anchor)
        if chosen[anchor] == anchor:
            representatives.append(anchor)
    return [chosen[anchor] for anchor in anchors]


def _alike(matcher: SequenceMatcher[str], representative: str, similarity: float) -> bool:
    """Whether the ratio reaches `similarity`; its two upper bounds are cheaper and rule most pairs out."""
    matcher.set_seq1(representative)
    return (
        matcher.real_quick_ratio() >= similarity
        and matcher.quick_ratio() >= similarity
        and matcher.ratio() >= similarity
    )
