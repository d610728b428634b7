"""The trainer-native scores, with numbers by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.reward.evaluators.episode import Call, Expected, Reference
from milepost.reward.evaluators.native import (
    broken_rules,
    goal_progress,
    good_choices,
    native_scores,
    step_efficiency,
)
from tests.reward.episodes import walk

REFERENCE = Reference(
    value={"A": 0.4, "B": 0.7},
    choices={"A": {"x": 0.6, "y": 0.2, None: 0.1}, "B": {"p": 0.7}},
    shortest=2,
)


def test_a_failure_came_as_far_as_its_best_state() -> None:
    assert goal_progress(walk("A x B p A y C failure"), REFERENCE.value) == pytest.approx(0.3)


def test_a_solved_task_is_worth_1() -> None:
    assert goal_progress(walk("A x B p C success"), REFERENCE.value) == pytest.approx(0.6)


def test_the_state_an_episode_was_cut_off_in_counts_and_one_after_an_end_does_not() -> None:
    assert goal_progress(walk("A x B truncated"), REFERENCE.value) == pytest.approx(0.3)
    assert goal_progress(walk("A x B failure"), REFERENCE.value) == 0


def test_progress_that_every_step_reports_counts_instead() -> None:
    assert goal_progress(walk("A x B p A failure", progress=[0.8, 0.1]), REFERENCE.value) == 0.8
    assert goal_progress(walk("A x B p A failure", progress=[0.8, None]), REFERENCE.value) == pytest.approx(0.3)


def test_efficiency_is_the_shortest_way_over_the_own_one_and_0_without_success() -> None:
    assert step_efficiency(walk("A x B p A x B success"), 2) == pytest.approx(2 / 3)
    assert step_efficiency(walk("A x B success"), 2) == 1  # shorter than the scenario says is ideal
    assert step_efficiency(walk("A x B failure"), 2) == 0


def test_a_choice_is_good_within_five_points_of_the_best_and_only_told_where_there_was_another() -> None:
    assert good_choices(walk("A x B p A y A - B failure"), REFERENCE) == [True, None, False, False]
    close = Reference(value={}, choices={"A": {"x": 0.5, "y": 0.54, "z": 0.56}}, shortest=None)
    assert good_choices(walk("A x A y A z A failure"), close) == [False, True, True]


def test_rules_are_those_the_environment_tells_and_calls_of_forbidden_tools() -> None:
    calls = [(Call(name="look"),), (Call(name="wipe", ok=False), Call(name="look"))]
    episode = walk("A x B p A success", calls=calls, violations=[("no ticket",), ()])
    assert broken_rules(episode.steps, ["wipe", "burn"]) == ["no ticket", "forbidden: wipe"]
    assert broken_rules(episode.steps, []) == ["no ticket"]


def test_the_trajectory_score_by_hand() -> None:
    scores = native_scores(walk("A x B p A y C success"), REFERENCE, Expected())
    # success 1, progress 0.6, efficiency 2/3, one good of two choices, safe
    assert scores.trajectory_score == pytest.approx(0.4 + 0.2 * 0.6 + 0.2 * 2 / 3 + 0.1 * 0.5 + 0.1)
    assert (scores.tool_selection, scores.coverage) == (0.5, pytest.approx(2 / 3))


def test_where_no_choice_can_be_compared_the_other_weights_are_scaled_up() -> None:
    lone = Reference(value={"A": 0.5}, choices={"A": {"x": 0.5}}, shortest=1)
    scores = native_scores(walk("A x B success"), lone, Expected())
    assert (scores.tool_selection, scores.coverage) == (None, 0)
    assert scores.trajectory_score == pytest.approx((0.4 + 0.2 * 0.5 + 0.2 + 0.1) / 0.9)


def test_a_broken_rule_costs_a_tenth_and_a_forbidden_tool_everything() -> None:
    clean = native_scores(walk("A x B success"), REFERENCE, Expected())
    broken = native_scores(walk("A x B success", violations=[("no ticket",)]), REFERENCE, Expected())
    fatal = native_scores(walk("A x B success", calls=[(Call(name="wipe"),)]), REFERENCE, Expected(forbidden=("wipe",)))
    assert clean.trajectory_score - broken.trajectory_score == pytest.approx(0.1)
    assert (broken.safety, fatal.safety, fatal.trajectory_score) == (0, 0, 0)


@given(
    moves=st.lists(st.tuples(st.sampled_from("AB"), st.sampled_from(["x", "y", "p", "-"])), min_size=1, max_size=9),
    outcome=st.sampled_from(["success", "failure", "truncated"]),
)
def test_every_score_lies_between_0_and_1(moves: list[tuple[str, str]], outcome: str) -> None:
    spelt = " ".join(f"{anchor} {action}" for anchor, action in moves)
    scores = native_scores(walk(f"A x {spelt} B {outcome}"), REFERENCE, Expected())
    told = [scores.goal_progress, scores.step_efficiency, scores.safety, scores.coverage, scores.trajectory_score]
    assert all(0 <= score <= 1 for score in [*told, scores.tool_selection or 0])
