"""First rise and search trees by hand; nothing here needs an engine."""

import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.actors.search import backed_up, candidates_per_step, first_rise, sibling_advantages, uct_scores
from milepost.learner.credit.assignment import CreditGroup, CreditTrajectory, CreditTurn
from milepost.learner.credit.strategies.crbc import CRBC, CRBCConfig


def test_the_first_candidate_that_rises_is_chosen_and_the_lower_ones_are_rejected() -> None:
    found = first_rise([0.35, 0.38, 0.52, 0.99], previous=0.40, budget=5)
    assert (found.chosen, found.rejected, found.num_candidates, found.has_risen) == (2, (0, 1), 3, True)


def test_no_candidate_is_sampled_beyond_the_rise_or_the_budget() -> None:
    sampled = []

    def estimates() -> Iterator[float]:
        for estimate in (0.2, 0.6, 0.9, 1.0):
            sampled.append(estimate)
            yield estimate

    assert first_rise(estimates(), previous=0.5, budget=4).num_candidates == 2
    assert sampled == [0.2, 0.6]
    sampled.clear()
    assert first_rise(estimates(), previous=0.95, budget=3).num_candidates == 3
    assert sampled == [0.2, 0.6, 0.9]


def test_without_a_rise_the_best_is_chosen_and_its_equals_are_not_rejected() -> None:
    found = first_rise([0.3, 0.5, 0.1, 0.5], previous=0.5, budget=4)
    assert (found.chosen, found.rejected, found.num_candidates, found.has_risen) == (1, (2, 0), 4, False)


def test_a_perfect_step_before_cannot_be_exceeded() -> None:
    assert not first_rise([1.0, 1.0], previous=1.0, budget=2).has_risen


def test_four_steps_take_one_and_three_quarters_candidates_each() -> None:
    previous, counts = 0.5, [1, 3, 1, 2]
    steps = [first_rise([0.1] * (count - 1) + [0.9], previous=previous, budget=5) for count in counts]
    assert [step.num_candidates for step in steps] == counts
    assert candidates_per_step(steps) == 1.75
    with pytest.raises(ValueError, match="no step was explored"):
        candidates_per_step([])


@pytest.mark.parametrize(
    ("estimates", "budget", "complaint"),
    [([], 3, "no candidate"), ([0.5], 0, "budget is 0"), ([0.1, math.nan], 2, "candidate 1 is nan")],
)
def test_an_exploration_that_cannot_be_is_refused(estimates: list[float], budget: int, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        first_rise(estimates, previous=0.4, budget=budget)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(0, 1), st.integers(1, 9))
def test_nothing_rejected_is_as_good_as_the_chosen_one(estimates: list[float], previous: float, budget: int) -> None:
    found = first_rise(estimates, previous=previous, budget=budget)
    seen = estimates[: found.num_candidates]
    assert len(seen) <= budget
    assert found.has_risen == (seen[found.chosen] > previous) == any(estimate > previous for estimate in seen)
    assert all(seen[k] < seen[found.chosen] for k in found.rejected)
    assert max(seen) == seen[found.chosen]


def test_the_least_visited_of_three_actions_is_expanded() -> None:
    scores = uct_scores([0.6, 0.4, 0.5], [5, 3, 2], exploration=1.4)
    assert scores == pytest.approx([1.5501, 1.6265, 2.0022], abs=5e-5)
    assert scores.index(max(scores)) == 2


def test_an_action_that_was_never_taken_comes_first() -> None:
    assert uct_scores([0.9, 0.0], [1, 0], exploration=1.4) == [0.9, math.inf]
    assert uct_scores([0.0], [0], exploration=1.4) == [math.inf]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_backing_up_outcomes_one_by_one_gives_their_mean(outcomes: list[float]) -> None:
    value = 0.0
    for visits, outcome in enumerate(outcomes, start=1):
        value = backed_up(value, outcome, visits=visits)
    assert value == pytest.approx(sum(outcomes) / len(outcomes))
    with pytest.raises(ValueError, match="visits is 0"):
        backed_up(0.5, 1.0, visits=0)


def test_siblings_are_compared_by_their_visits() -> None:
    # mean (5 * .6 + 3 * .4 + 2 * .5) / 10 = .52
    assert sibling_advantages([0.6, 0.4, 0.5], [5, 3, 2]) == pytest.approx([0.08, -0.12, -0.02])
    assert sibling_advantages([0.6, 0.0], [5, 0]) == [0.0, 0.0]


def test_siblings_have_the_raw_credit_of_crbc() -> None:
    """From the root of a tree, x wins 3 of 5 times and y 1 of 4; a scale of 1 leaves CRBC's beta."""

    def once(action: str, outcome: str) -> CreditTrajectory:
        return CreditTrajectory(outcome, (CreditTurn("root", action, action, 0.0, False, num_tokens=1),))

    outcomes = [("x", "success")] * 3 + [("x", "failure")] * 2 + [("y", "success")] + [("y", "failure")] * 3
    group = CreditGroup("g", tuple(once(action, outcome) for action, outcome in outcomes))
    credit = CRBC(CRBCConfig(beta=0.9, sigma_min=1.0)).assign(group)
    x, y = sibling_advantages([0.6, 0.25], [5, 4])
    assert [float(steps[0]) for steps in credit.step_adv] == pytest.approx([0.9 * x] * 5 + [0.9 * y] * 4)


@pytest.mark.parametrize(("values", "visits"), [([], []), ([0.5], [1, 2]), ([0.5], [-1])])
def test_a_node_that_cannot_be_is_refused(values: list[float], visits: list[int]) -> None:
    with pytest.raises(ValueError, match="a count >= 0 for each action"):
        uct_scores(values, visits, exploration=1.0)
    with pytest.raises(ValueError, match="a count >= 0 for each action"):
        sibling_advantages(values, visits)


def test_a_node_without_a_visit_compares_nothing() -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        sibling_advantages([0.5], [0])
