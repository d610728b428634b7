"""What became of the groups that the learner was given: trained on, left out by the filter, or too old."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from milepost.cluster.replay.ready import Taken
from milepost.cluster.trajectories.fates import Fate
from milepost.envs.types import Group
from milepost.learner.episode_credit import EpisodeCredit
from milepost.learner.loop import UpdateReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Of one group."""

    group: Group
    fate: Fate
    reason: str
    learner_version: int
    credits: Sequence[EpisodeCredit | None]
    """Of each trajectory, None where no update judged it."""


def judgements(taken: Taken, report: UpdateReport) -> list[Judgement]:
    """Of every group that was taken for an update, and of those that were too old for it."""
    judged = [
        Judgement(
            group=leased.group,
            fate="trained" if verdict.keep else "filtered",
            reason=verdict.reason,
            learner_version=report.version,
            credits=credits,
        )
        for leased, verdict, credits in zip(taken.groups, report.verdicts, report.credits, strict=True)
    ]
    return judged + [_stale(group, report.version) for group in taken.stale]


def _stale(group: Group, version: int) -> Judgement:
    oldest = min(trajectory.oldest_version for trajectory in group.trajectories)
    newest = max(trajectory.newest_version for trajectory in group.trajectories)
    sampled = f"version {oldest}" if oldest == newest else f"versions {oldest} to {newest}"
    return Judgement(
        group=group,
        fate="stale",
        reason=f"sampled by {sampled}, and the learner was at {version}",
        learner_version=version,
        credits=[None] * len(group.trajectories),
    )
