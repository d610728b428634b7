"""Graded rewards without a word on success: what is better earns more, though every sum above 0 reads as a success."""

from dataclasses import replace

import numpy as np
import pytest

from milepost.learner.credit.assignment import CreditGroup, CreditTrajectory, PastTransition
from milepost.learner.credit.history import transitions
from milepost.learner.credit.interchange import decode, encode
from milepost.learner.credit.strategies.registry import READS_SUCCESS, build
from milepost.learner.credit.strategies.registry import settings as credit_settings
from tests.learner.credit.random_groups import path

WAYS = ("A good B on C on D success", "A poor E success", "A good B on C on D success", "A poor E success")


def graded(*, success_reported: bool = False) -> CreditGroup:
    """From A, three turns lead to .9, one turn to .3; by their sums, both are successes."""
    rewards = [0.0, 0.0, 0.9, 0.3] * 2
    return CreditGroup.from_walks(*WAYS, success_reported=success_reported, reward=rewards)


def first_step(strategy: str, group: CreditGroup, **settings: object) -> tuple[float, float]:
    """Step credit in A of the good way and of the poor one."""
    credit = build(credit_settings(strategy=strategy, **settings)).assign(group)
    return float(credit.step_adv[0][0]), float(credit.step_adv[1][0])


@pytest.mark.parametrize("strategy", sorted(READS_SUCCESS))
def test_the_better_way_earns_more_where_the_environment_reports_no_success(strategy: str) -> None:
    good, poor = first_step(strategy, graded())
    assert good > poor


def test_the_default_judges_both_ways_by_what_they_earn() -> None:
    # Q(A, good) = .98^3 * .9, Q(A, poor) = .98 * .3; two actions, tried equally often, are one sigma from their mean.
    group = graded()
    credit = build(credit_settings()).assign(group)
    assert first_step("crbc", group) == pytest.approx((1.0, -1.0))
    assert credit.state_value == pytest.approx(
        {"A": (0.98**3 * 0.9 + 0.98 * 0.3) / 2, "B": 0.98**2 * 0.9, "C": 0.98 * 0.9}
    )
    by_success = first_step("crbc", group, objective="success")
    assert by_success[0] < 0 < by_success[1], "the shorter way to a sum above 0"
    assert first_step("crbc", graded(success_reported=True)) == by_success


def test_a_reward_counts_from_the_turn_that_earned_it_on() -> None:
    # A: x pays .5 at once and y nothing, then B pays 1 either way: Q(A, x) = .98 * (.5 + .98), Q(A, y) = .98 * .98.
    walks = ("A x B z C success", "A y B z C success")
    group = CreditGroup.from_walks(*walks, success_reported=False, reward=[0.5, 1.0, 0.0, 1.0])
    credit = build(credit_settings()).assign(group)
    assert credit.state_value == pytest.approx({"A": 0.98 * (0.25 + 0.98), "B": 0.98})
    assert [steps.tolist() for steps in credit.step_adv] == [[pytest.approx(1.0), 0.0], [pytest.approx(-1.0), 0.0]]


@pytest.mark.parametrize("unit", [0.002, 1.0, 500.0])
def test_the_unit_of_the_return_changes_no_step_credit(unit: float) -> None:
    # The gap of the two ways is a sixth of the floor: sigma_min is a share of the largest return.
    walks = ("A x B success", "A y C success")
    group = CreditGroup.from_walks(*walks, success_reported=False, reward=[unit, unit * 1.0034])
    credit = build(credit_settings(sigma_min=0.01)).assign(group)
    assert float(credit.step_adv[1][0]) == pytest.approx(0.98 * 0.0017 / (0.01 * 1.0034), rel=1e-6)


@pytest.mark.parametrize(
    ("episodes", "reports"),
    [
        ([("success", True), ("failure", True)], True),
        ([("success", False), ("failure", False)], False),
        ([("success", True), ("failure", False)], False),
        ([("success", True), ("truncated", False)], True),  # it was cut off before there was anything to report
        ([("truncated", False), ("truncated", False)], False),
        ([("truncated", True), ("truncated", False)], True),
    ],
)
def test_a_group_reports_success_if_everyone_who_came_to_an_end_does(
    episodes: list[tuple[str, bool]], reports: bool
) -> None:
    trajectories = tuple(replace(path(outcome, ("A", "x", "B")), success_reported=told) for outcome, told in episodes)
    assert CreditGroup("g", trajectories).reports_success is reports


def test_a_line_of_the_interchange_format_says_where_success_was_guessed() -> None:
    silent = graded()
    assert b'"success_reported":false' in encode(silent)
    assert decode(encode(silent)).trajectories == silent.trajectories
    assert b"success_reported" not in encode(graded(success_reported=True))


@pytest.mark.parametrize("strategy", ["crbc", "graphgpo", "graphhca", "pbrs"])
def test_outcomes_of_the_past_say_nothing_about_returns(strategy: str) -> None:
    past = (PastTransition("A", "poor", None, True, 50.0), *transitions(graded()))
    told = first_step(strategy, replace(graded(), history=past), history_decay=0.5)
    assert told == first_step(strategy, graded(), history_decay=0.5)


def test_a_continuing_task_that_is_always_cut_off_is_judged_by_its_rewards() -> None:
    turns = ("A work A work A truncated", "A rest A rest A truncated")
    group = CreditGroup.from_walks(*turns, success_reported=False, reward=[1.0, 1.0, 0.0, 0.0])
    credit = build(credit_settings()).assign(group)
    assert np.concatenate(credit.step_adv).tolist() == pytest.approx([1.0, 1.0, -1.0, -1.0])


def test_a_trajectory_reports_success_unless_it_says_otherwise() -> None:
    assert CreditTrajectory("success", graded().trajectories[0].turns).success_reported
