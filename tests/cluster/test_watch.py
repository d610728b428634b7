"""What the driver makes of its measurements: options for the next update, lines for people, the end of a run."""

import msgspec
import pytest

from milepost.cluster.settings.config import RunConfig
from milepost.cluster.watch import Watch
from milepost.envs.types import Group
from milepost.learner.credit.filter import FilterConfig, Verdict
from milepost.learner.health.collapse import CollapseConfig
from milepost.learner.health.selection_bias import SelectionBiasConfig
from milepost.learner.recipe import UpdateOptions
from tests.cluster.replay.buffer_rig import failure, task, trajectory
from tests.cluster.runlog.example_records import eval_record, iteration_record


def config(action: str = "warn") -> RunConfig:
    return RunConfig(
        collapse=CollapseConfig(action=action, baseline=2, patience=2, stop_empty=3),
        selection_bias=SelectionBiasConfig(min_groups=3, max_shift=0.2),
    )


def collapsing(iteration: int, **changes: object):
    """Two iterations with spread, then none."""
    spread = 0.4 if iteration <= 2 else 0.0
    return iteration_record(iteration, reward_std_within=spread, success=0.2, **changes)


def group(name: str, size: int = 4, turns: int = 1) -> Group:
    played = [msgspec.structs.replace(t, turns=t.turns * turns) for t in (trajectory(name, i) for i in range(size))]
    return Group(group_id=name, task=task(), trajectories=played)


@pytest.mark.parametrize(
    ("action", "filtered", "rate"), [("warn", False, 1.0), ("filter", True, 1.0), ("lower_lr", False, 0.5)]
)
def test_a_sign_of_collapse_is_said_once_and_changes_the_next_update_as_configured(
    action: str, filtered: bool, rate: float
) -> None:
    watch = Watch(config(action), [])
    said = [watch.iteration(collapsing(i)) for i in range(1, 6)]
    assert [len(lines) for lines in said] == [0, 0, 0, 1, 0], said
    options = watch.options(None)
    assert (options.filter is not None, options.lr_factor) == (filtered, rate)
    assert watch.stop_reason is None


def test_a_resumed_run_knows_what_it_saw_before() -> None:
    seen = [collapsing(i) for i in range(1, 5)]
    assert Watch(config("lower_lr"), seen).options(None).lr_factor == 0.5
    assert Watch(config("lower_lr"), seen[:3]).options(None).lr_factor == 1.0


def test_a_run_is_given_up_after_iterations_without_a_step_only_if_asked() -> None:
    empty = [collapsing(i, groups_trained=0, groups_filtered=8) for i in range(1, 4)]
    assert Watch(config("warn"), empty).stop_reason is None
    assert Watch(config("stop"), empty[:2]).stop_reason is None
    assert Watch(config("stop"), empty).stop_reason is not None


def test_success_on_held_out_tasks_alone_counts_as_validation() -> None:
    watch = Watch(RunConfig(collapse=CollapseConfig(action="stop", stop_evals=2)), [])
    for iteration in (1, 2):
        watch.evaluation(eval_record(iteration, "train", 0.0))
    assert watch.stop_reason is None
    for iteration in (3, 4):
        watch.evaluation(eval_record(iteration, "heldout", 0.0))
    assert watch.stop_reason is not None


def test_dropping_the_long_groups_shows_in_the_metrics_and_is_said() -> None:
    watch = Watch(config(), [])
    short, long = [group(f"s{i}") for i in range(8)], [group(f"l{i}", turns=5) for i in range(8)]
    watch.handled(short, [Verdict(keep=True, reason="selected", score=1.0, weight=1.0)] * 8)
    watch.lost(long, [(failure("f", 0), "env_failed")])
    assert watch.selection_bias["turns"] < -0.5
    lines = watch.iteration(iteration_record(1))
    assert any("turns" in line and "stale" in line for line in lines), lines


def test_without_signs_an_update_is_told_its_histories_alone() -> None:
    watch = Watch(RunConfig(filter=FilterConfig()), [])
    assert watch.options(None) == UpdateOptions()
    assert watch.options(((), ())) == UpdateOptions(histories=((), ()))
