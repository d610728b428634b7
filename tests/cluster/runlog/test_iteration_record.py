"""Where an iteration's seconds go, what its turns took, and how much of its sequences was padding."""

from typing import Any

import msgspec
import pytest

from milepost.cluster import evaluate
from milepost.cluster.replay.buffer import Depth
from milepost.cluster.runlog.iteration_record import Clock, PolicyChecks, SystemState, iteration_record
from milepost.cluster.runlog.records import IterationRecord
from milepost.envs.types import Group
from milepost.learner.loop import UpdateReport
from milepost.reward.evaluators.summary import summarize
from tests.cluster.replay.buffer_rig import task, trajectory
from tests.cluster.runlog.example_records import cohort

STATE = SystemState(
    time_s=100.0,
    depth=Depth(ready_groups=3, applied_groups=2, open_groups=5, bytes=1000, oldest_ready_s=7.5),
    groups_stale=0,
    episodes_failed=0,
    nonfinite_total=0,
    engine_restarts=0,
    worker_restarts=0,
    learner_restarts=0,
    ledger={},
    selection_bias={},
)


def report(**changes: Any) -> UpdateReport:
    values: dict[str, Any] = {
        "version": 4, "skipped_steps": 0, "losses": (0.5,), "verdicts": (), "credits": (), "tokens": 8,
        "num_samples": 5, "prefix_breaks": 1, "padding_share": 0.25, "parity": None,
        "metrics": {}, "seconds": {"credit": 0.5, "update": 2.5},
    }  # fmt: skip
    return UpdateReport(**(values | changes))


def record(clock: Clock, **changes: Any) -> IterationRecord:
    played = [trajectory("g", 0), trajectory("g", 1)]
    slow = [msgspec.structs.replace(turn, generate_s=0.4, env_s=0.1, tool={"name": "sql"}) for turn in played[1].turns]
    group = Group(group_id="g", task=task(), trajectories=[played[0], msgspec.structs.replace(played[1], turns=slow)])
    checks = PolicyChecks(parity=1e-6, information=None, repetition=None)
    return iteration_record([group], report(**changes), iteration=5, clock=clock, state=STATE, checks=checks)


def clock(**changes: float) -> Clock:
    return Clock({"wait": 1.0, "train": 4.0, "commit": 0.5, "publish": 1.5, "check": 1.0} | changes, overlap_s=2.0)


def test_every_phase_has_its_seconds_and_publishing_does_not_hold_the_checks() -> None:
    found = record(clock())
    seconds = (found.wait_s, found.train_s, found.commit_s, found.publish_s, found.check_s)
    assert seconds == (1.0, 4.0, 0.5, 1.5, 1.0)
    assert found.update_s == {"credit": 0.5, "update": 2.5, "other": 1.0}, "4 s of training, of which 3 are named"
    assert found.both_busy_share == pytest.approx(2 / 8)


@pytest.mark.parametrize(("overlap_s", "share"), [(-3.0, 0.0), (99.0, 0.5)])
def test_an_engine_that_was_replaced_meanwhile_leaves_the_overlap_a_share(overlap_s: float, share: float) -> None:
    assert record(Clock(clock().seconds, overlap_s=overlap_s)).both_busy_share == share


def test_turns_sequences_and_the_buffer_are_measured() -> None:
    found = record(clock())
    assert (found.generate_s, found.env_s) == (pytest.approx(0.2), pytest.approx(0.05)), "half of the turns took time"
    assert found.tool_calls == 1
    assert (found.samples, found.prefix_breaks, found.padding_share) == (5, 1, 0.25)
    assert (found.buffer_groups, found.groups_open, found.groups_unsettled) == (3, 5, 2)
    assert (found.buffer_bytes, found.buffer_oldest_s) == (1000, 7.5)


def test_success_is_told_by_cohort() -> None:
    played = [msgspec.structs.replace(trajectory("g", i), cohort=name) for i, name in enumerate(("easy", "hard", ""))]
    group = Group(group_id="g", task=task(), trajectories=played)
    checks = PolicyChecks(parity=None, information=None, repetition=None)
    line = iteration_record([group], report(), iteration=1, clock=clock(), state=STATE, checks=checks)
    evaluated = evaluate.record(summarize(played), split="ood", iteration=3, version=3, time_s=1.0)
    assert line.cohorts == evaluated.cohorts == {"easy": cohort(1, 1), "hard": cohort(1, 1)}
