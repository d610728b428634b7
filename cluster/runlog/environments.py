"""What each environment of a run did in an iteration, and which do nothing but fail. Pure: no clock, no wire."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from milepost.cluster.runlog.records import EnvRecord
from milepost.envs.types import Failure, Group
from milepost.learner.credit.filter import Verdict, reason_counts
from milepost.reward.evaluators.summary import summarize
from milepost.reward.evaluators.variance import reward_variance


def env_records(
    groups: Sequence[Group], verdicts: Sequence[Verdict], failures: Sequence[Failure]
) -> dict[str, EnvRecord]:
    """One record per named environment that finished or failed an episode, in the order of their names.

    `verdicts` are those of the groups.
    """
    names = {group.task.env_name for group in groups} | {failure.task.env_name for failure in failures}
    return {
        name: _env_record(
            [(group, verdict) for group, verdict in zip(groups, verdicts, strict=True) if group.task.env_name == name],
            [failure for failure in failures if failure.task.env_name == name],
        )
        for name in sorted(names - {""})
    }


def _env_record(judged: Sequence[tuple[Group, Verdict]], failures: Sequence[Failure]) -> EnvRecord:
    trajectories = [t for group, _ in judged for t in group.trajectories]
    verdicts = [verdict for _, verdict in judged]
    kept = sum(verdict.keep for verdict in verdicts)
    counted = EnvRecord(
        episodes=len(trajectories),
        groups_trained=kept,
        groups_filtered=len(judged) - kept,
        verdicts={str(reason): count for reason, count in reason_counts(verdicts).items() if count},
        episodes_failed=len(failures),
        first_error=said_of(failures[0]) if failures else "",
    )
    if not trajectories:
        return counted
    summary = summarize(trajectories)
    variance = reward_variance([[t.reward for t in group.trajectories] for group, _ in judged])
    return msgspec.structs.replace(
        counted,
        success=summary.success_rate,
        success_low=summary.success_low,
        success_high=summary.success_high,
        reward_mean=summary.mean_reward,
        reward_std_within=math.sqrt(variance.within),
        zero_variance_share=variance.zero_share,
        turns_mean=summary.mean_turns,
        invalid_share=summary.invalid_share,
    )


def said_of(failure: Failure) -> str:
    """Why an episode failed, in one line: boundary, error, message."""
    return f"{failure.boundary}: {failure.error}: {failure.message}"


class FailingEnvironments:
    """Which environments do nothing but fail: said once when it begins, with the first error, and once when it ends."""

    def __init__(self, *, episodes: int) -> None:
        """`episodes`: as many failures in a row, without an episode that came through, are no accident."""
        self._episodes = episodes
        self._row: dict[str, tuple[int, str]] = {}
        self._told: set[str] = set()

    def see(self, envs: Mapping[str, EnvRecord]) -> list[str]:
        """Take in an iteration; what is new to say."""
        lines = []
        for name, record in envs.items():
            if record.episodes:
                self._row.pop(name, None)
                if name in self._told:
                    self._told.remove(name)
                    lines.append(f"environment {name}: episodes come through again")
                continue
            failed, first = self._row.get(name, (0, record.first_error))
            self._row[name] = (failed + record.episodes_failed, first)
            if name not in self._told and self._row[name][0] >= self._episodes:
                self._told.add(name)
                lines.append(
                    f"environment {name} does nothing but fail: {self._row[name][0]} episodes in a row, the first in "
                    f"{first}; training goes on with the others"
                )
        return lines
