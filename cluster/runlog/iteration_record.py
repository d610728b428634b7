"""From what an iteration handled to the numbers people watch. Pure: no clock, no wire."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from milepost.cluster.replay.buffer import Depth
from milepost.cluster.runlog.environments import env_records
from milepost.cluster.runlog.records import IterationRecord
from milepost.envs.types import Failure, Group, Trajectory
from milepost.learner.credit.filter import reason_counts
from milepost.learner.loop import UpdateReport
from milepost.reward.evaluators.summary import summarize
from milepost.reward.evaluators.variance import reward_variance


@dataclass(slots=True)
class Clock:
    """Seconds of one iteration, by what the driver did in them."""

    seconds: dict[str, float] = field(default_factory=dict)
    """By phase: wait (for groups), train, commit (with the checkpoint where one is due), publish, check."""
    transfer_s: dict[str, float] = field(default_factory=dict)
    """Of `publish`, by part; see `IterationRecord.transfer_s`."""
    overlap_s: float = 0.0
    """Of `train`: with generation under way as well; may be off where an engine was replaced meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemState:
    """What the rest of the system looked like at the end of an iteration."""

    time_s: float
    """Since training began."""
    depth: Depth
    groups_stale: int
    episodes_failed: int
    nonfinite_total: int
    engine_restarts: int
    worker_restarts: int
    learner_restarts: int
    ledger: dict[str, int]
    selection_bias: dict[str, float]
    failures: Sequence[Failure] = ()
    """Episodes that failed since the last iteration, as far as they were kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChecks:
    """What was measured of the policy after an iteration; None for what was not."""

    parity: float | None
    """Mean |log-prob of learner - of engine|, in nats per token."""
    information: float | None
    """Mutual information of prompts and responses, in nats."""
    repetition: float | None
    """How much the responses that it trained on repeat each other."""


def staleness(groups: Sequence[Group], version: int) -> list[int]:
    """Versions between each trajectory's oldest token and the weights that train on it."""
    return [version - t.oldest_version for group in groups for t in group.trajectories]


def mixed_share(trajectories: Sequence[Trajectory]) -> float:
    """Share of responses (turns) sampled by more than one policy version."""
    turns = [turn for t in trajectories for turn in t.turns]
    return fmean(len({span.version for span in turn.versions}) > 1 for turn in turns)


def iteration_record(
    groups: Sequence[Group],
    report: UpdateReport,
    *,
    iteration: int,
    clock: Clock,
    state: SystemState,
    checks: PolicyChecks,
) -> IterationRecord:
    """The record of one iteration that trained on `groups` and made policy version `report.version + 1`."""
    trajectories = [t for group in groups for t in group.trajectories]
    turns = [turn for t in trajectories for turn in t.turns]
    summary = summarize(trajectories)
    returns = [[t.reward for t in group.trajectories] for group in groups]
    variance = reward_variance(returns)
    lags = staleness(groups, report.version)
    tokens = sum(t.num_tokens for t in trajectories)
    kept = sum(verdict.keep for verdict in report.verdicts)
    m, spent = report.metrics, clock.seconds
    wall_s = sum(spent.values())
    return IterationRecord(
        iteration=iteration,
        policy_version=report.version + 1,
        time_s=state.time_s,
        success=summary.success_rate,
        reward_mean=summary.mean_reward,
        reward_std_within=math.sqrt(variance.within),
        reward_std_between=math.sqrt(variance.between),
        zero_variance_share=variance.zero_share,
        episodes=len(trajectories),
        turns_mean=summary.mean_turns,
        generate_s=fmean(turn.generate_s for turn in turns),
        env_s=fmean(turn.env_s for turn in turns),
        tool_calls=sum(turn.tool is not None for turn in turns),
        invalid_share=summary.invalid_share,
        cut_share=summary.cut_share,
        context_full_share=summary.context_full_share,
        tokens=tokens,
        tokens_per_s=tokens / wall_s,
        groups_trained=kept,
        groups_filtered=len(groups) - kept,
        groups_stale=state.groups_stale,
        episodes_failed=state.episodes_failed,
        staleness_mean=fmean(lags),
        staleness_max=max(lags),
        mixed_version_share=mixed_share(trajectories),
        loss=fmean(report.losses) if report.losses else None,
        kl=m.get("approx_kl"),
        entropy=m.get("entropy"),
        clip_low=m.get("clip_fraction_low"),
        clip_high=m.get("clip_fraction_high"),
        grad_norm=m.get("grad_norm"),
        advantage_abs_p99=m.get("advantage_abs_p99"),
        ess=m.get("effective_sample_share"),
        parity=checks.parity,
        wait_s=spent["wait"],
        train_s=spent["train"],
        commit_s=spent["commit"],
        publish_s=spent["publish"],
        transfer_s={**clock.transfer_s},
        check_s=spent["check"],
        both_busy_share=min(max(clock.overlap_s, 0.0), spent["train"]) / wall_s,
        samples=report.num_samples,
        prefix_breaks=report.prefix_breaks,
        padding_share=report.padding_share,
        update_s={**report.seconds, "other": max(0.0, spent["train"] - sum(report.seconds.values()))},
        buffer_groups=state.depth.ready_groups,
        buffer_bytes=state.depth.bytes,
        buffer_oldest_s=state.depth.oldest_ready_s,
        groups_open=state.depth.open_groups,
        groups_unsettled=state.depth.applied_groups,
        nonfinite_total=state.nonfinite_total,
        engine_restarts=state.engine_restarts,
        worker_restarts=state.worker_restarts,
        learner_restarts=state.learner_restarts,
        ledger=state.ledger,
        repetition=checks.repetition,
        mutual_information=checks.information,
        value_loss=m.get("value_loss"),
        explained_variance=m.get("explained_variance"),
        verdicts={str(reason): count for reason, count in reason_counts(report.verdicts).items()},
        update={**m},
        selection_bias={**state.selection_bias},
        cohorts=summary.cohorts,
        envs=env_records(groups, report.verdicts, state.failures),
    )
