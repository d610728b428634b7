"""What credit assignment made of each episode of an update: numbers for people and for records, not for the loss.

The loss reads `Credit` arrays; this is a copy of them, episode by episode, in the order of the group's trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from milepost.learner.credit.assignment import Credit


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeCredit:
    """Of one trajectory of T turns. `turns`, `steps` and `compared` are as the strategy assigned them, unscaled."""

    trajectory: float
    """Trajectory advantage, unweighted."""
    turns: list[float]
    """`[T]`: total credit of each turn, before modulators and scaling."""
    steps: list[float]
    """`[T]`: step advantages, unweighted."""
    compared: list[bool]
    """`[T]`: whether the step advantage rests on a comparison or an estimate of its own."""
    advantages: list[float] | None
    """`[T]`: what the loss multiplied the turn's tokens with; None where the policy was not trained on the group."""
    token_advantages: list[list[float]] | None
    """T lists, one number per sampled token: used instead of `advantages` where the strategy credits tokens."""


def episode_credits(assigned: Credit, used: Credit | None) -> tuple[EpisodeCredit, ...]:
    """One per trajectory of a group: `assigned` by the strategy, `used` by the loss (None: not trained on).

    >>> from milepost.learner.credit.assignment import CreditGroup
    >>> from milepost.learner.credit.strategies.starpo import StarPO, StarPOConfig
    >>> group = CreditGroup.from_walks("A x B success", "A y C failure")
    >>> credit = StarPO(StarPOConfig(baseline="dr_grpo")).assign(group)
    >>> won, lost = episode_credits(credit, None)
    >>> won.turns, lost.turns, won.advantages
    ([0.5], [-0.5], None)
    """
    return tuple(
        EpisodeCredit(
            trajectory=float(assigned.traj_adv[i]),
            turns=assigned.total[i].tolist(),
            steps=assigned.step_adv[i].tolist(),
            compared=[bool(covered) for covered in assigned.coverage[i]],
            advantages=None if used is None else used.total[i].tolist(),
            token_advantages=None
            if used is None or used.token_total is None
            else [tokens.tolist() for tokens in used.token_total[i]],
        )
        for i in range(len(assigned.total))
    )


def credits_of_groups(
    assigned: Sequence[Credit], used: Sequence[Credit], kept: Sequence[bool]
) -> tuple[tuple[EpisodeCredit, ...], ...]:
    """For each group its episodes' credit. `used` has one item for each group that is `kept`, in order.

    Raises ValueError where their numbers differ.
    """
    rest = iter(used)
    paired = [(credit, next(rest, None) if keep else None) for credit, keep in zip(assigned, kept, strict=True)]
    if next(rest, None) is not None:
        raise ValueError(f"{len(used)} credits were used, {sum(kept)} groups are kept")
    return tuple(episode_credits(credit, loss) for credit, loss in paired)
