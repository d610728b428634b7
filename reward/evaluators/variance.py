"""How much the rewards of a group differ, which is what a group-relative advantage learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec


class RewardVariance(msgspec.Struct, frozen=True, kw_only=True):
    """How much rewards differ inside groups: what a group-relative advantage can learn from."""

    within: float
    """Mean population variance inside a group, weighted by group size."""
    between: float
    """Population variance of the group means, weighted by group size; with `within` it is that of all rewards."""
    zero_share: float
    """Share of the groups in which all rewards are equal."""


def reward_variance(groups: Sequence[Sequence[float]]) -> RewardVariance:
    """The variance inside groups of `groups[g][i]`, the return of rollout i of group g.

    Raises ValueError if there is no group, or one without rollouts.
    """
    if not groups or not all(groups):
        raise ValueError("reward variance needs at least one group, and a reward in each")
    n = sum(len(group) for group in groups)
    means = [math.fsum(group) / len(group) for group in groups]
    pairs = list(zip(groups, means, strict=True))
    within = math.fsum((reward - mean) ** 2 for group, mean in pairs for reward in group) / n
    centre = math.fsum(reward for group in groups for reward in group) / n
    between = math.fsum(len(group) * (mean - centre) ** 2 for group, mean in pairs) / n
    flat = sum(max(group) == min(group) for group in groups)
    return RewardVariance(within=within, between=between, zero_share=flat / len(groups))
