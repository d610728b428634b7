"""Success by cohort gets from the episodes of an iteration, or of an evaluation, into its line of metrics.jsonl."""

from milepost.cluster import evaluate
from milepost.envs.types import Outcome, Task, Trajectory, Turn, VersionSpan
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


def episode(index: int, outcome: Outcome, name: str) -> Trajectory:
    return Trajectory(task=TASK, group_id="g", index=index, turns=[TURN], outcome=outcome, cohort=name)


PLAYED = [episode(0, "success", "easy"), episode(1, "failure", "hard"), episode(2, "success", "hard")]


def test_an_evaluations_record_holds_success_by_cohort() -> None:
    line = evaluate.record(summarize(PLAYED), split="ood", iteration=3, version=3, time_s=1.0)
    assert line.cohorts == {"easy": cohort(1, 1), "hard": cohort(2, 1)}
