"""Plausible records for the tests of metrics, report and console."""

from __future__ import annotations

from typing import Any

from milepost.cluster.runlog.records import EvalRecord, IterationRecord
from milepost.envs.types import Split
from milepost.reward.evaluators.summary import CohortSuccess
from milepost.reward.evaluators.wilson import wilson_interval


def iteration_record(iteration: int, **changes: Any) -> IterationRecord:
    values: dict[str, Any] = {
        "iteration": iteration,
        "policy_version": iteration,
        "time_s": 8.0 * iteration,
        "success": 0.25,
        "reward_mean": 0.25,
        "reward_std_within": 0.4,
        "zero_variance_share": 0.125,
        "episodes": 64,
        "turns_mean": 5.5,
        "invalid_share": 0.01,
        "tokens": 3200,
        "tokens_per_s": 900.0,
        "groups_trained": 6,
        "groups_filtered": 2,
        "groups_stale": 0,
        "episodes_failed": 1,
        "staleness_mean": 0.75,
        "staleness_max": 2,
        "mixed_version_share": 0.3,
        "loss": -0.01,
        "kl": 0.004,
        "entropy": 0.9,
        "clip_low": 0.01,
        "clip_high": 0.02,
        "grad_norm": 0.7,
        "advantage_abs_p99": 3.0,
        "ess": 0.97,
        "parity": 1e-6,
        "wait_s": 2.0,
        "train_s": 4.0,
        "publish_s": 1.0,
        "both_busy_share": 0.5,
        "buffer_groups": 3,
        "buffer_bytes": 120_000,
        "nonfinite_total": 0,
        "engine_restarts": 0,
        "worker_restarts": 0,
        "learner_restarts": 0,
        "ledger": {"issued": 8, "running": 40, "trained": 48 * iteration, "filtered": 16 * iteration},
    }
    return IterationRecord(**(values | changes))


def cohort(episodes: int, successes: int) -> CohortSuccess:
    low, high = wilson_interval(successes, episodes)
    return CohortSuccess(episodes=episodes, success=successes / episodes, success_low=low, success_high=high)


def eval_record(iteration: int, split: Split, success: float) -> EvalRecord:
    return EvalRecord(
        iteration=iteration,
        policy_version=iteration,
        split=split,
        time_s=1.0,
        success=success,
        success_low=success - 0.05,
        success_high=success + 0.05,
        episodes=200,
    )
