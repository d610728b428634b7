"""Every alert fires on its fault, alone, and none on a healthy run, before training, or once a task is solved."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.monitoring.promtool import MONITORING, RULES, alerts, needs_promtool, require_firing

ROOT = Path(__file__).parents[2]
HEALTHY = {
    "up": "1+0x60",
    "milepost_iteration": "0+1x60",
    "milepost_reward_within_group_std": "0.4+0x60",
    "milepost_success_ratio": "0.3+0.005x60",
    "milepost_zero_variance_groups_ratio": "0.25+0x60",
    'milepost_nonfinite_total{where="learner"}': "0+0x60",
    "milepost_logprob_parity_abs_mean": "0.000001+0x60",
    'milepost_eval_success_low_ratio{split="heldout"}': "0.1+0.002x60",
    'milepost_eval_success_high_ratio{split="heldout"}': "0.2+0.002x60",
    "milepost_last_progress_timestamp_seconds": "0+60x60",
    'milepost_iteration_phase_seconds_sum{phase="train"}': "0+10x60",
    'milepost_iteration_phase_seconds_sum{phase="wait"}': "0+2x60",
    'milepost_iteration_phase_seconds_count{phase="train"}': "0+1x60",
    'milepost_iteration_phase_seconds_count{phase="wait"}': "0+1x60",
    "milepost_staleness_mean_versions": "1+0x60",
    'milepost_groups_total{state="trained"}': "0+6x60",
    'milepost_groups_total{state="filtered"}': "0+2x60",
    'milepost_groups_total{state="stale"}': "0+0x60",
    "milepost_buffer_bytes": "1000000+0x60",
    'milepost_ledger_episodes{state="trained"}': "0+64x60",
    'milepost_ledger_episodes{state="env_failed"}': "0+0x60",
    'milepost_ledger_episodes{state="infra_failed"}': "0+0x60",
    "milepost_ledger_issued_episodes": "0+64x60",
    "milepost_ledger_imbalance_episodes": "0+0x60",
    'milepost_env_reward_within_group_std{env="lake"}': "0.4+0x60",
    'milepost_env_success_ratio{env="lake",split="rollouts"}': "0.3+0.005x60",
    'milepost_env_episodes_total{env="lake",state="finished"}': "0+64x60",
    'milepost_env_episodes_total{env="lake",state="failed"}': "0+0x60",
    'milepost_engine_up{engine="0"}': "1+0x60",
    'milepost_engine_up{engine="1"}': "1+0x60",
    "milepost_workers_up": "2+0x60",
    'milepost_restarts_total{where="engine"}': "0+0x60",
    'milepost_restarts_total{where="worker"}': "0+0x60",
    "milepost_last_checkpoint_timestamp_seconds": "0+60x60",
    "milepost_unsaved_updates": "2+0x60",
    'milepost_limit{limit="staleness_versions"}': "2+0x60",
    'milepost_limit{limit="parity_nats"}': "0.01+0x60",
    'milepost_limit{limit="buffer_bytes"}': "100000000+0x60",
    'milepost_limit{limit="workers"}': "2+0x60",
}
COLLAPSED = "0.4+0x20 0.02+0x40"
FAULTS = {
    "MilepostEchoTrap": {'milepost_env_reward_within_group_std{env="lake"}': COLLAPSED},
    "MilepostNothingToCompare": {"milepost_zero_variance_groups_ratio": "0.25+0x20 0.95+0x40"},
    "MilepostNonFinite": {'milepost_nonfinite_total{where="learner"}': "0+0x40 0+1x20"},
    "MilepostParityNearLimit": {"milepost_logprob_parity_abs_mean": "0.000001+0x30 0.006+0x30"},
    "MilepostEvaluationRegression": {
        'milepost_eval_success_low_ratio{split="heldout"}': "0.6+0x30 0.2+0x30",
        'milepost_eval_success_high_ratio{split="heldout"}': "0.8+0x30 0.4+0x30",
    },
    "MilepostNoProgress": {"milepost_last_progress_timestamp_seconds": "0+60x30 1800+0x30"},
    "MilepostStalenessAtBound": {"milepost_staleness_mean_versions": "1+0x15 1.95+0x45"},
    "MilepostStaleDominates": {'milepost_groups_total{state="stale"}': "0+0x20 0+12x40"},
    "MilepostBufferFull": {"milepost_buffer_bytes": "1000000+0x30 99000000+0x30"},
    "MilepostEpisodesFailing": {'milepost_ledger_episodes{state="env_failed"}': "0+0x30 0+30x30"},
    "MilepostEnvironmentFailing": {'milepost_env_episodes_total{env="lake",state="failed"}': "0+0x30 0+30x30"},
    "MilepostEngineDown": {'milepost_engine_up{engine="1"}': "1+0x40 0+0x20"},
    "MilepostWorkersMissing": {"milepost_workers_up": "2+0x30 1+0x30"},
    "MilepostRestartStorm": {'milepost_restarts_total{where="worker"}': "0+0x38 1+1x4 5+0x18"},
    "MilepostLedgerOutOfBalance": {"milepost_ledger_imbalance_episodes": "0+0x43 3+0x17"},
    "MilepostDriverDown": {"up": "1+0x40 0+0x20"},
}
BEFORE_TRAINING = {
    name: "0+0x60" for name in HEALTHY if "{" not in name and name not in ("up", "milepost_workers_up")
} | {name: "0+0x60" for name in HEALTHY if re.search(r"_total\{(state|where)|_sum\{|_count\{", name)}
SOLVED = {
    "milepost_reward_within_group_std": "0.4+0x20 0+0x40",
    'milepost_env_reward_within_group_std{env="lake"}': "0.4+0x20 0+0x40",
    "milepost_success_ratio": "0.4+0.03x20 1+0x40",
    'milepost_env_success_ratio{env="lake",split="rollouts"}': "0.4+0.03x20 1+0x40",
    "milepost_zero_variance_groups_ratio": "0.25+0.03x20 1+0x40",
}
pytestmark = needs_promtool


def test_promtool_takes_the_rules() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", *map(str, RULES)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_healthy_run_is_silent_at_all_times(tmp_path: Path) -> None:
    require_firing(tmp_path, HEALTHY, {minute: set() for minute in (1, 2, 5, 10, 20, 40, 60)})


def test_nothing_fires_before_training_begins(tmp_path: Path) -> None:
    require_firing(tmp_path, BEFORE_TRAINING | {"up": "1+0x60"}, {minute: set() for minute in (1, 5, 20, 45, 60)})


def test_a_solved_task_is_no_collapse(tmp_path: Path) -> None:
    require_firing(tmp_path, HEALTHY | SOLVED, {minute: set() for minute in (15, 20, 25, 30, 45, 60)})


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fires_its_alert_and_no_other(tmp_path: Path, name: str) -> None:
    require_firing(tmp_path, HEALTHY | FAULTS[name], {14: set(), 45: {name}})


def test_a_run_that_never_ends_its_first_iteration_is_named(tmp_path: Path) -> None:
    began = {"milepost_last_progress_timestamp_seconds": "0+0x3 180+0x57", "up": "1+0x60"}
    require_firing(tmp_path, BEFORE_TRAINING | began, {30: set(), 45: {"MilepostNoFirstIteration"}})


def test_a_checkpoint_of_an_hour_ago_is_too_old_only_while_updates_are_at_risk(tmp_path: Path) -> None:
    series = {name: re.sub("x60$", "x120", values) for name, values in HEALTHY.items()}
    series["milepost_last_checkpoint_timestamp_seconds"] = "0+60x30 1800+0x90"
    require_firing(tmp_path, series, {80: set(), 110: {"MilepostCheckpointTooOld"}})
    require_firing(tmp_path, series | {"milepost_unsaved_updates": "0+0x120"}, {110: set()})


def test_staleness_that_lies_at_a_bound_of_one_is_ordinary(tmp_path: Path) -> None:
    require_firing(tmp_path, HEALTHY | {'milepost_limit{limit="staleness_versions"}': "1+0x60"}, {45: set()})


def test_every_alert_has_a_fault_here_and_a_section_in_the_runbook() -> None:
    elsewhere = {"MilepostNoFirstIteration", "MilepostCheckpointTooOld"}
    assert alerts().keys() == FAULTS.keys() | elsewhere
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    sections = dict(re.findall(r"^## (Milepost\w+)\n(.*?)(?=^## |\Z)", runbook, re.M | re.S))
    assert sections.keys() == alerts().keys()
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        for part in ("**It means**", "**Look at**", "**Do**"):
            assert part in sections[name], f"{name}: {part}"


def test_the_configuration_names_the_rules_that_are_there() -> None:
    told = set(re.findall(r"rules/\w+\.yml", (MONITORING / "prometheus.yml").read_text()))
    assert told == {f"rules/{path.name}" for path in RULES}
