"""Success by cohort gets from the episodes of an iteration, or of an evaluation, into its line of metrics.jsonl."""

from milepost.cluster import evaluate
from milepost.cluster.runlog.iteration_record import Clock, PolicyChecks, SystemState, iteration_record
from milepost.envs.types import Group, Outcome, Task, Trajectory, Turn, VersionSpan
from milepost.learner.loop import UpdateReport
from milepost.reward.evaluators import summarize
from tests.cluster.runlog.example_records import cohort

TURN = Turn(
    prompt_ids=[1],
    response_ids=[2],
    logprobs=[-1.0],
    versions=[VersionSpan(version=0, start=0, end=1)],
    anchor="a",
    next_anchor="b",
    action="x",
    reward=0.0,
)
TASK = Task(env="x:Y", seed=0, split="train")
REPORT = UpdateReport(
    version=0,
    optimizer_steps=0,
    skipped_steps=0,
    losses=(),
    verdicts=(),
    tokens=0,
    num_samples=0,
    prefix_breaks=0,
    parity=None,
    parity_all=None,
    metrics={},
    seconds={},
)
CLOCK = Clock(total_s=1.0, wall_s=1.0, wait_s=0.0, train_s=1.0, publish_s=0.0, overlap_s=0.0)
STATE = SystemState(
    buffer_groups=0,
    buffer_bytes=0,
    groups_stale=0,
    episodes_failed=0,
    nonfinite_total=0,
    engine_restarts=0,
    worker_restarts=0,
    learner_restarts=0,
    ledger={},
    selection_bias={},
)


def episode(index: int, outcome: Outcome, name: str) -> Trajectory:
    return Trajectory(task=TASK, group_id="g", index=index, turns=[TURN], outcome=outcome, cohort=name)


PLAYED = [episode(0, "success", "easy"), episode(1, "failure", "hard"), episode(2, "success", "hard")]


def test_an_iterations_record_holds_success_by_cohort() -> None:
    group = Group(group_id="g", task=TASK, trajectories=PLAYED)
    checks = PolicyChecks(parity=None, information=None)
    line = iteration_record([group], REPORT, iteration=1, clock=CLOCK, state=STATE, checks=checks)
    assert line.cohorts == {"easy": cohort(1, 1), "hard": cohort(2, 1)}


def test_an_evaluations_record_holds_success_by_cohort() -> None:
    line = evaluate.record(summarize(PLAYED), split="ood", iteration=3, version=3, time_s=1.0)
    assert line.cohorts == {"easy": cohort(1, 1), "hard": cohort(2, 1)}
