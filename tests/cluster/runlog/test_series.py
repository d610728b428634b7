"""What Prometheus sees of the parts of a run, and that it never sees more of a long run than of a short one."""

from __future__ import annotations

import random
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from milepost.cluster.replay.buffer import Depth
from milepost.cluster.replay.ledger import Balance
from milepost.cluster.runlog.metrics import Metrics
from milepost.cluster.runlog.records import EnvRecord
from milepost.cluster.runlog.series import SystemView
from tests.cluster.runlog.example_records import cohort, eval_record, iteration_record
from tests.cluster.runlog.test_metrics import scrape

PHASE = 'milepost_iteration_phase_seconds_bucket{le="3.0",phase="train"}'


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[Metrics]:
    with Metrics(tmp_path / "metrics.jsonl") as served:
        yield served


def view(**changes: Any) -> SystemView:
    values: dict[str, Any] = {
        "engines": {0: 7, 1: None},
        "workers": 2,
        "restarts": {"engine": 1, "worker": 0, "learner": 0},
        "depth": Depth(ready_groups=3, applied_groups=2, open_groups=5, bytes=1000, oldest_ready_s=7.5),
        "balance": Balance(issued_total=64, counts={"running": 16, "trained": 48}),  # type: ignore[dict-item]
        "unsaved_updates": 4,
        "spans": {"sent": 12, "lost": 3},
    }
    return SystemView(**(values | changes))


def plenty(metrics: Metrics) -> None:
    """Records in which everything is measured, of a run of named environments."""
    found = cohort(8, 6)
    part = EnvRecord(
        episodes=8, success=found.success, success_low=found.success_low, success_high=found.success_high,
        reward_mean=0.7, reward_std_within=0.3, zero_variance_share=0.25, turns_mean=4.0, invalid_share=0.1,
        groups_trained=1, groups_filtered=1,
    )  # fmt: skip
    metrics.begin(dict.fromkeys(("staleness_versions", "parity_nats", "buffer_bytes", "iterations"), 2.0))
    metrics.record(
        iteration_record(
            1, cohorts={"easy": found}, envs={"lake": part}, verdicts={"selected": 6}, update={"mismatch_k3": 0.1},
            update_s={"pack": 0.1}, selection_bias={"turns": 0.1}, transfer_s={"pause": 0.1},
        )
    )  # fmt: skip
    for split in ("heldout", "ood"):
        line = eval_record(1, split, 0.5)
        metrics.record_eval(
            msgspec.structs.replace(
                line, turns_p50=3, turns_p99=9, sampled_tokens_mean=20.0, prompt_tokens_mean=100.0,
                cohorts={"easy": found}, envs={"lake": found},
            )
        )  # fmt: skip


def test_engines_are_told_apart_by_their_place_and_a_lost_one_keeps_the_version_it_served(metrics: Metrics) -> None:
    metrics.see(view(engines={0: 7, 1: 6}))
    metrics.see(view())
    seen = scrape(metrics)
    assert (seen['milepost_engine_up{engine="0"}'], seen['milepost_engine_up{engine="1"}']) == (1, 0)
    assert seen['milepost_engine_policy_version{engine="0"}'] == 7
    assert seen['milepost_engine_policy_version{engine="1"}'] == 6
    assert seen["milepost_workers_up"] == 2


def test_what_waits_in_the_buffer_is_seen_between_iterations_too(metrics: Metrics) -> None:
    metrics.record(iteration_record(1, buffer_groups=16, buffer_bytes=9))
    metrics.see(view())
    seen = scrape(metrics)
    assert (seen["milepost_buffer_groups"], seen["milepost_buffer_bytes"]) == (3, 1000)
    assert seen["milepost_buffer_oldest_seconds"] == 7.5
    assert seen["milepost_unsaved_updates"] == 4


def test_an_episode_that_is_in_no_state_is_an_imbalance(metrics: Metrics) -> None:
    metrics.see(view())
    assert scrape(metrics)["milepost_ledger_imbalance_episodes"] == 0
    metrics.see(view(balance=Balance(issued_total=64, counts={"running": 16, "trained": 45})))  # type: ignore[dict-item]
    assert scrape(metrics)["milepost_ledger_imbalance_episodes"] == 3


def test_a_restart_is_counted_once_whoever_tells_of_it_first(metrics: Metrics) -> None:
    metrics.see(view(restarts={"engine": 2, "worker": 1, "learner": 0}))
    metrics.record(iteration_record(1, engine_restarts=2, worker_restarts=1))
    metrics.see(view(restarts={"engine": 3, "worker": 1, "learner": 0}))
    seen = scrape(metrics)
    assert seen['milepost_restarts_total{where="engine"}'] == 3
    assert seen['milepost_restarts_total{where="worker"}'] == 1


def test_seconds_are_spread_over_fixed_buckets(metrics: Metrics) -> None:
    for train_s in (2.0, 4.0, 2.5):
        metrics.record(iteration_record(1, train_s=train_s, transfer_s={"pause": 0.2}))
    seen = scrape(metrics)
    assert seen[PHASE] == 2
    assert seen['milepost_iteration_phase_seconds_count{phase="train"}'] == 3
    assert seen['milepost_weight_transfer_seconds_sum{part="pause"}'] == pytest.approx(0.6)


def test_the_interval_of_an_iterations_success_is_served(metrics: Metrics) -> None:
    metrics.record(iteration_record(1, success=0.15, episodes=40))
    seen = scrape(metrics)
    assert seen["milepost_success_low_ratio"] == pytest.approx(0.0706, abs=1e-4)
    assert seen["milepost_success_high_ratio"] == pytest.approx(0.2907, abs=1e-4)


def test_times_and_limits_begin_with_training(metrics: Metrics) -> None:
    metrics.begin({"staleness_versions": 2})
    seen = scrape(metrics)
    assert seen['milepost_limit{limit="staleness_versions"}'] == 2
    assert seen["milepost_last_progress_timestamp_seconds"] > 1e9
    assert seen["milepost_last_checkpoint_timestamp_seconds"] > 1e9


def test_series_grow_by_less_than_a_twentieth_over_5000_episodes_and_50_restarts(metrics: Metrics) -> None:
    luck = random.Random(0)
    for iteration in range(1, 81):
        restarts = {"engine": iteration // 20, "worker": min(50, iteration), "learner": iteration // 40}
        metrics.see(view(engines={0: iteration, 1: iteration if luck.random() < 0.9 else None}, restarts=restarts))
        names = {f"task-{luck.randrange(10**6)}": cohort(2, 1) for _ in range(33)}  # an environment without measure
        metrics.record(
            iteration_record(
                iteration,
                worker_restarts=restarts["worker"],
                verdicts={"selected": 6, "zero_variance": 2},
                update={"mismatch_k3": luck.random()},
                transfer_s={"pause": luck.random()},
                cohorts=names,
            )
        )
        metrics.record_eval(eval_record(iteration, "heldout", 0.4))
        if iteration == 1:
            before = len(scrape(metrics))
    assert 80 * iteration_record(1).episodes >= 5000
    assert scrape(metrics)['milepost_restarts_total{where="worker"}'] == 50
    assert len(scrape(metrics)) < 1.05 * before


def test_no_name_or_number_of_an_episode_is_a_label(metrics: Metrics) -> None:
    metrics.see(view())
    metrics.record(iteration_record(1, verdicts={"selected": 6}, update={"mismatch_k3": 0.1}))
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics", timeout=5) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    labels = {label for family in families for sample in family.samples for label in sample.labels}
    assert labels <= {"engine", "state", "where", "reason", "measure", "phase", "part", "le", "limit", "field"}
