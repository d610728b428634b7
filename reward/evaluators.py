"""The numbers by which a training is watched and a policy is judged. Pure functions, for evaluation only.

Not promised: that two success rates differ because their intervals are apart in one run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from milepost.envs.types import Trajectory

MAX_COHORTS: Final = 32
OTHER: Final = "other"
"""The cohorts beyond `MAX_COHORTS`, counted together."""


class RewardVariance(msgspec.Struct, frozen=True, kw_only=True):
    """Population variance of rewards, split by the law of total variance: `total = within + between`."""

    total: float
    within: float
    """Mean variance inside a group, weighted by group size: what a group-relative advantage can learn from."""
    between: float
    """Variance of the groups' means: how much the tasks differ."""
    zero_share: float
    """Share of the groups in which all rewards are equal."""


class CohortSuccess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a policy did on the episodes of one cohort."""

    episodes: int
    success: float
    """Share of them."""
    success_low: float
    success_high: float
    """Wilson 95 % interval of `success`."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """How a policy did on a set of episodes."""

    episodes: int
    success_rate: float
    success_low: float
    success_high: float
    """Wilson 95 % interval of `success_rate`."""
    mean_turns: float
    p99_turns: int
    """Nearest-rank 99th percentile over all episodes, the truncated ones too."""
    truncated_share: float
    invalid_share: float
    """Share of the turns without a valid action."""
    mean_reward: float
    """Mean undiscounted return."""
    cohorts: dict[str, CohortSuccess] = {}
    """By name; episodes without a cohort are in none."""


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927), within [0, 1]; (0, 1) for no trials.

    Raises ValueError unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The ends are exact at 0 and n successes; rounding would put them a hair off.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == n else (centre + spread) / scale
    return low, high


def reward_variance(groups: Sequence[Sequence[float]]) -> RewardVariance:
    """The variance of `groups[g][i]`, the return of rollout i of group g.

    Raises ValueError if there is no group, or one without rollouts.
    """
    if not groups or not all(groups):
        raise ValueError("reward variance needs at least one group, and a reward in each")
    n = sum(len(group) for group in groups)
    grand_mean = math.fsum(reward for group in groups for reward in group) / n
    means = [math.fsum(group) / len(group) for group in groups]
    pairs = list(zip(groups, means, strict=True))
    within = math.fsum((reward - mean) ** 2 for group, mean in pairs for reward in group) / n
    between = math.fsum(len(group) * (mean - grand_mean) ** 2 for group, mean in pairs) / n
    flat = sum(max(group) == min(group) for group in groups)
    return RewardVariance(total=within + between, within=within, between=between, zero_share=flat / len(groups))


def nearest_rank(values: Sequence[float], q: float) -> float:
    """The q-quantile by nearest rank, `sorted(values)[ceil(q n) - 1]`: always one of `values`, never interpolated.

    Raises ValueError for no values or q outside (0, 1].
    """
    if not values or not 0.0 < q <= 1.0:
        raise ValueError(f"nearest rank of {len(values)} values at q = {q}: needs a value, and q in (0, 1]")
    rank = math.ceil(q * len(values) - 1e-9)  # 0.07 * 100 is 7.000000000000001
    return sorted(values)[max(rank, 1) - 1]


def summarize(trajectories: Sequence[Trajectory]) -> Summary:
    """The summary of finished episodes; raises ValueError if there are none."""
    if not trajectories:
        raise ValueError("there are no trajectories to summarize")
    n = len(trajectories)
    lengths = [len(trajectory.turns) for trajectory in trajectories]
    successes = sum(trajectory.outcome == "success" for trajectory in trajectories)
    low, high = wilson_interval(successes, n)
    invalid = sum(turn.action is None for trajectory in trajectories for turn in trajectory.turns)
    return Summary(
        episodes=n,
        success_rate=successes / n,
        success_low=low,
        success_high=high,
        mean_turns=sum(lengths) / n,
        p99_turns=int(nearest_rank(lengths, 0.99)),
        truncated_share=sum(trajectory.outcome == "truncated" for trajectory in trajectories) / n,
        invalid_share=invalid / sum(lengths),
        mean_reward=math.fsum(trajectory.reward for trajectory in trajectories) / n,
        cohorts=by_cohort(trajectories),
    )


def by_cohort(trajectories: Sequence[Trajectory]) -> dict[str, CohortSuccess]:
    """Success by cohort, in the order of their names: of at most `MAX_COHORTS`, and of all the others as `OTHER`.

    Episodes without a cohort are left out.
    """
    names = sorted({trajectory.cohort for trajectory in trajectories} - {"", OTHER})
    told = set(names[:MAX_COHORTS])
    outcomes: dict[str, list[bool]] = {name: [] for name in names[:MAX_COHORTS]}
    for trajectory in trajectories:
        if trajectory.cohort:
            name = trajectory.cohort if trajectory.cohort in told else OTHER
            outcomes.setdefault(name, []).append(trajectory.outcome == "success")
    return {name: _cohort_success(sum(found), len(found)) for name, found in outcomes.items()}


def together(cohorts: Sequence[CohortSuccess]) -> CohortSuccess:
    """Several cohorts as one. Raises ValueError if there are none."""
    if not cohorts:
        raise ValueError("there are no cohorts to put together")
    episodes = sum(cohort.episodes for cohort in cohorts)
    return _cohort_success(round(math.fsum(cohort.success * cohort.episodes for cohort in cohorts)), episodes)


def _cohort_success(successes: int, n: int) -> CohortSuccess:
    low, high = wilson_interval(successes, n)
    return CohortSuccess(episodes=n, success=successes / n, success_low=low, success_high=high)
