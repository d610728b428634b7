"""How a policy did on a set of episodes, in all and by cohort and environment.

Not promised: that two success rates differ because their intervals are apart in one run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from milepost.envs.types import Trajectory
from milepost.reward.evaluators.signals import nearest_rank
from milepost.reward.evaluators.wilson import wilson_interval

MAX_COHORTS: Final = 32
OTHER: Final = "other"
"""The cohorts beyond `MAX_COHORTS`, counted together."""


class CohortSuccess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a policy did on the episodes of one cohort, or of one environment."""

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
    invalid_share: float
    """Share of the turns without a valid action."""
    cut_share: float
    """Share of the responses that were cut at their length limit."""
    context_full_share: float
    """Share of the episodes that ended because their next prompt had no room in the engine's context."""
    turns_p50: int
    turns_p99: int
    """Nearest-rank quantiles of the turns of an episode, however it ended."""
    sampled_tokens_mean: float
    prompt_tokens_mean: float
    """Tokens of an episode: sampled, and read as prompts over all its turns, cached ones included."""
    mean_reward: float
    """Mean undiscounted return."""
    cohorts: dict[str, CohortSuccess] = {}
    """By name; episodes without a cohort are in none."""
    envs: dict[str, CohortSuccess] = {}
    """By name of the environment; without a name it is in none."""
    failed: dict[str, str] = {}
    """Environments that were to be judged and could not be, with the reason."""


def summarize(trajectories: Sequence[Trajectory]) -> Summary:
    """The summary of finished episodes; raises ValueError if there are none."""
    if not trajectories:
        raise ValueError("there are no trajectories to summarize")
    n = len(trajectories)
    successes = sum(trajectory.outcome == "success" for trajectory in trajectories)
    low, high = wilson_interval(successes, n)
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    lengths = [len(trajectory.turns) for trajectory in trajectories]
    return Summary(
        episodes=n,
        success_rate=successes / n,
        success_low=low,
        success_high=high,
        mean_turns=len(turns) / n,
        invalid_share=sum(turn.action is None for turn in turns) / len(turns),
        cut_share=sum(not turn.stopped for turn in turns) / len(turns),
        context_full_share=sum(trajectory.context_full for trajectory in trajectories) / n,
        turns_p50=nearest_rank(lengths, 0.5),
        turns_p99=nearest_rank(lengths, 0.99),
        sampled_tokens_mean=sum(trajectory.num_tokens for trajectory in trajectories) / n,
        prompt_tokens_mean=sum(len(turn.prompt_ids) for turn in turns) / n,
        mean_reward=math.fsum(trajectory.reward for trajectory in trajectories) / n,
        cohorts=by_cohort(trajectories),
        envs=by_env(trajectories),
    )


def by_env(trajectories: Sequence[Trajectory]) -> dict[str, CohortSuccess]:
    """Success by environment, in the order in which they appear; those without a name are left out."""
    outcomes: dict[str, list[bool]] = {}
    for trajectory in trajectories:
        outcomes.setdefault(trajectory.task.env_name, []).append(trajectory.outcome == "success")
    return {name: _cohort_success(sum(found), len(found)) for name, found in outcomes.items() if name}


def by_cohort(trajectories: Sequence[Trajectory]) -> dict[str, CohortSuccess]:
    """Success by cohort, in the order of their names: of at most `MAX_COHORTS`, and of all the others as `OTHER`.

    Episodes without a cohort are left out. In a run of named environments a cohort is called `environment/cohort`.
    """
    trajectories = [trajectory for trajectory in trajectories if trajectory.cohort]
    names = sorted({trajectory.cohort_name for trajectory in trajectories} - {OTHER})
    told = set(names[:MAX_COHORTS])
    outcomes: dict[str, list[bool]] = {name: [] for name in names[:MAX_COHORTS]}
    for trajectory in trajectories:
        name = trajectory.cohort_name if trajectory.cohort_name in told else OTHER
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
