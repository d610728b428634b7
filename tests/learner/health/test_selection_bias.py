"""Selection-bias meters: hand-computed shifts, and random dropping against dropping the long ones."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from milepost.envs.types import Failure, Group, Task, Trajectory, Turn, VersionSpan
from milepost.learner.health.selection_bias import (
    TRAINED,
    EpisodeFacts,
    SelectionBias,
    SelectionBiasConfig,
    Shift,
    facts_of,
    facts_of_failure,
    standard_errors,
)

Records = list[tuple[EpisodeFacts, str]]


def meter(groups: list[Records], **config: object) -> SelectionBias:
    found = SelectionBias(SelectionBiasConfig(**config))
    for group in groups:
        found.add(group)
    return found


def shift(found: SelectionBias, field: str) -> Shift:
    (one,) = [shift for shift in found.shifts() if shift.field == field]
    return one


def episode(fate: str, *, cohort: str = "", **facts: float) -> tuple[EpisodeFacts, str]:
    return EpisodeFacts(cohort, **facts), fate


def groups_of(lengths: np.ndarray, fates: list[str]) -> list[Records]:
    return [
        [episode(fate, length=float(x), turns=float(x) / 10, seconds=1.0, reward=0.5) for x in row]
        for row, fate in zip(lengths, fates, strict=True)
    ]


def test_the_shift_is_the_difference_of_means_in_standard_deviations_of_what_was_generated() -> None:
    # generated 10, 10, 20, 20, 30, 30, 30, 30: mean 22.5, squared deviations 312.5 + 12.5 + 225 = 550,
    # std sqrt(550 / 8) = 8.2916; trained 10, 10, 20, 20: mean 15
    groups = [[episode(TRAINED, length=x)] * 2 for x in (10, 20)]
    groups += [[episode("stale", length=30)] * 2] * 2
    length = shift(meter(groups, min_groups=2), "length")
    assert (length.generated, length.trained, length.episodes) == (22.5, 15.0, 8)
    assert length.size == pytest.approx(-7.5 / 8.2916, abs=1e-4)
    assert (length.reason, length.dropped) == ("stale", 4)


def test_standard_errors_take_the_group_as_the_unit_of_chance() -> None:
    # trained groups 1, 1 and 3, 3; dropped groups 6, 6 and 8, 8. Means 2 and 7, gap 5. Residuals -1, 1 and -1, 1 over
    # 4 episodes a side: groups contribute -.5, .5, .5, -.5, squares sum to 1, error sqrt(4/3) = 1.1547
    values = np.array([1.0, 1, 3, 3, 6, 6, 8, 8])
    trained = np.array([True] * 4 + [False] * 4)
    assert standard_errors(values, trained, np.array([0, 0, 1, 1, 2, 2, 3, 3])) == pytest.approx(5 / 1.1547, abs=1e-4)
    # as 8 groups of one: each contributes 1/4, squares sum to .5, error sqrt(8/7 * .5) = .7559
    assert standard_errors(values, trained, np.arange(8)) == pytest.approx(5 / 0.7559, abs=1e-3)
    assert standard_errors(np.array([1.0, 2.0]), np.array([True, False]), np.arange(2)) == math.inf
    assert standard_errors(np.array([1.0, 1.0]), np.array([True, False]), np.arange(2)) == 0.0


def test_the_cohort_distance_is_half_the_sum_of_the_changes_in_share() -> None:
    # generated easy .5, hard .25, odd .25; trained easy 1: distance (.5 + .25 + .25) / 2
    groups = [[episode(TRAINED, cohort="easy")], [episode(TRAINED, cohort="easy")]]
    groups += [[episode("env_failed", cohort="hard")], [episode("env_failed", cohort="odd")]]
    cohort = shift(meter(groups, min_groups=2), "cohort")
    assert cohort.size == pytest.approx(0.5)
    assert (cohort.cohort, cohort.generated, cohort.trained) == ("easy", 0.5, 1.0)
    assert (cohort.reason, cohort.dropped) == ("env_failed", 2)


@pytest.mark.parametrize("seed", range(20))
def test_dropping_groups_at_random_does_not_warn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tasks = rng.lognormal(4.0, 0.8, size=(128, 1))  # episodes of one group resemble each other
    lengths = tasks * rng.lognormal(0.0, 0.1, size=(128, 8))
    fates = [TRAINED if rng.random() < 0.5 else "low_score" for _ in range(128)]
    assert meter(groups_of(lengths, fates)).warnings() == []


def test_dropping_the_long_ones_warns_with_field_means_and_reason() -> None:
    rng = np.random.default_rng(0)
    tasks = np.concatenate([np.full((40, 1), 100.0), np.full((24, 1), 200.0)])
    lengths = tasks + rng.uniform(-5, 5, size=(64, 8))
    warnings = meter(groups_of(lengths, [TRAINED] * 40 + ["stale"] * 24)).warnings()
    assert len(warnings) == 2  # length and turns; seconds and reward don't differ
    assert "length is 137" in warnings[0]
    assert "tokens generated" in warnings[0]
    assert "tokens trained on average (-0.77 standard deviations)" in warnings[0]
    assert "most of it is due to 'stale', which dropped 192 of 512 episodes" in warnings[0]
    assert "turns" in warnings[1]


def test_the_reason_named_is_the_one_that_moved_the_mean_not_the_one_that_dropped_most() -> None:
    groups = [[episode(TRAINED, length=100 + k % 3)] for k in range(20)]
    groups += [[episode("zero_variance", length=100 + k % 3)] for k in range(30)]
    groups += [[episode("stale", length=400 + k)] for k in range(25)]
    (warning,) = meter(groups).warnings()
    assert "due to 'stale', which dropped 25 of 75 episodes" in warning


def test_a_lost_cohort_is_named_with_both_shares() -> None:
    groups = [[episode(TRAINED, cohort="easy")] * 4] * 30 + [[episode(TRAINED, cohort="hard")] * 4] * 2
    groups += [[episode("env_failed", cohort="hard")] * 4] * 28 + [[episode("env_failed", cohort="easy")] * 4] * 2
    (warning,) = meter(groups).warnings()
    assert "cohort 'easy' is 52% of generated and 94% of trained (distance of the cohorts 0.42)" in warning


def test_a_warning_comes_once_and_again_only_after_the_field_came_back() -> None:
    long_dropped = [[episode(TRAINED, length=10 + k % 2)] for k in range(20)]
    long_dropped += [[episode("stale", length=90 + k % 2)] for k in range(20)]
    all_trained = [[episode(TRAINED, length=50 + k % 2)] for k in range(40)]
    found = meter(long_dropped, window_groups=40)
    assert len(found.warnings()) == 1
    assert found.warnings() == []
    for group in all_trained:
        found.add(group)
    assert found.warnings() == []
    for group in long_dropped:
        found.add(group)
    assert len(found.warnings()) == 1


def test_small_samples_are_not_judged() -> None:
    groups = [[episode(TRAINED, length=10 + k % 2)] for k in range(100)]
    groups += [[episode("stale", length=90 + k % 2)] * 50 for k in range(15)]
    assert meter(groups, min_groups=16).shifts() == []
    assert len(meter(groups, min_groups=15).warnings()) == 1


def test_a_sure_but_small_shift_is_measured_and_not_warned_of() -> None:
    groups = [[episode(TRAINED, length=100 + k)] for k in range(100)]
    groups += [[episode("stale", length=210 + k % 2)] for k in range(16)]
    found = meter(groups, max_shift=0.5)
    assert shift(found, "length").certainty > 4
    assert 0.2 < abs(shift(found, "length").size) < 0.5
    assert found.warnings() == []


def test_only_the_most_recent_groups_count() -> None:
    old = [[episode("stale", length=1000)]] * 50
    recent = [[episode(TRAINED, length=10)], [episode("stale", length=20)]] * 10
    assert shift(meter(old + recent, window_groups=20, min_groups=2), "length").generated == 15.0


def test_an_unknown_fact_leaves_an_episode_out_of_that_field_only() -> None:
    groups: list[Records] = [[episode(TRAINED, length=10, turns=2)]] * 3
    groups += [[episode("env_failed", turns=4)]] * 3
    found = meter(groups, min_groups=3)
    assert {shift.field for shift in found.shifts()} == {"turns"}, "no cohort is set, so none is compared"
    assert shift(found, "turns").generated == 3.0


def test_records_come_from_groups_and_failures() -> None:
    task = Task(env="x:Y", seed=0, split="train", options={"cohort": "easy"})
    turn = Turn(
        prompt_ids=[1],
        response_ids=[2, 3],
        logprobs=[-1.0, -1.0],
        versions=[VersionSpan(version=0, start=0, end=2)],
        anchor="a",
        next_anchor="a",
        action="x",
        reward=0.25,
    )
    played = Trajectory(
        task=task, group_id="g", index=0, turns=[turn, turn], outcome="failure", seconds=1.5, cohort="hard"
    )
    group = Group(group_id="g", task=task, trajectories=[played])
    assert facts_of(group, TRAINED) == [(EpisodeFacts("hard", 4, 2, 1.5, 0.5), TRAINED)]
    failure = Failure(task=task, group_id="g", index=1, boundary="env", error="E", message="m", turn=3, cohort="hard")
    assert facts_of_failure(failure, "env_failed") == (EpisodeFacts("hard", turns=3), "env_failed")


def test_a_group_without_episodes_changes_nothing_and_an_empty_meter_says_nothing() -> None:
    assert meter([[]]).shifts() == meter([]).shifts() == []
    with pytest.raises(ValidationError):
        SelectionBiasConfig(max_shift=0.0)
