"""Signals of HiPER, IGPO and 3SPO by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.learner.credit.gae import gae
from milepost.learner.credit.signals import (
    StateCounts,
    hierarchical_deltas,
    information_gains,
    learning_potential,
    novelty_weight,
    rollouts_from,
    state_reward,
    switch_advantages,
)

SEEN_FOUR, SEEN_TWO = StateCounts(visits=4, successes=1), StateCounts(visits=2, successes=1)


def test_both_levels_of_the_worked_example() -> None:
    # Two turns under the first sub-goal (.5), then one under the second (.7).
    found = hierarchical_deltas(np.zeros(3), np.array([0.3, 0.4, 0.2]), np.array([0.5, 0.7]), starts=[0, 2], gamma=0.9)
    np.testing.assert_allclose(found.low, [0.06, 0.23, -0.2], atol=1e-12)
    np.testing.assert_allclose(found.high, [0.067, -0.7], atol=1e-12)


def test_a_sub_goal_earns_what_its_turns_earned_discounted() -> None:
    rewards, low = np.array([1.0, 2.0, 4.0]), np.zeros(3)
    found = hierarchical_deltas(rewards, low, np.array([0.0, 8.0]), starts=[0, 2], gamma=0.5)
    assert found.low.tolist() == [1.0, 2.0 + 0.5 * 8.0, 4.0]
    assert found.high.tolist() == [1.0 + 0.5 * 2.0 + 0.25 * 8.0, 4.0 - 8.0]


def test_switching_is_credited_where_the_old_sub_goal_was_worth_less() -> None:
    flags, chance, ones = np.array([1.0, 0.0]), np.array([0.3, 0.3]), np.ones(2)
    np.testing.assert_allclose(switch_advantages(flags, chance, 0.7 * ones, 0.4 * ones), [0.21, -0.09], atol=1e-12)


numbers = st.lists(st.tuples(*[st.floats(-5, 5)] * 2), min_size=1, max_size=12)


@given(numbers, st.floats(0.1, 1.0))
def test_segments_of_one_turn_and_one_segment_are_flat(pairs: list[tuple[float, float]], gamma: float) -> None:
    rewards, values = (np.array(column) for column in zip(*pairs, strict=True))
    flat = gae(rewards, values, gamma=gamma, lam=0.0)
    single = hierarchical_deltas(rewards, values, values, starts=range(len(pairs)), gamma=gamma)
    np.testing.assert_allclose(single.low, flat, atol=1e-12)
    np.testing.assert_allclose(single.high, flat, atol=1e-12)
    whole = hierarchical_deltas(rewards, values, values[:1], starts=[0], gamma=gamma)
    np.testing.assert_allclose(whole.low, flat, atol=1e-12)
    np.testing.assert_allclose(whole.high, gae(rewards, values, gamma=gamma, lam=1.0)[:1], atol=1e-9)


@pytest.mark.parametrize("starts", [[], [1], [0, 0], [0, 3], [0, 2, 1]])
def test_segments_that_cannot_be_are_refused(starts: list[int]) -> None:
    with pytest.raises(ValueError, match="starts must rise from 0"):
        hierarchical_deltas(np.zeros(3), np.zeros(3), np.zeros(len(starts)), starts=starts, gamma=0.9)
    with pytest.raises(ValueError, match="a high value per segment"):
        hierarchical_deltas(np.zeros(3), np.zeros(3), np.zeros(1), starts=[0, 1], gamma=0.9)


def test_gains_are_the_rise_of_the_answers_probability() -> None:
    logprobs = [np.array(pair) for pair in ([-2.0, -1.0], [-1.0, -0.5], [-0.2, -0.1])]
    probabilities = [float(np.exp(np.mean(pair))) for pair in logprobs]
    assert probabilities == pytest.approx([0.2231, 0.4724, 0.8607], abs=5e-5)
    gains = information_gains(logprobs)
    np.testing.assert_allclose(gains, [0.2492, 0.3883], atol=5e-5, rtol=0)
    assert gains.sum() == pytest.approx(probabilities[-1] - probabilities[0])


def test_an_answer_scored_once_gains_nothing_and_an_empty_one_is_refused() -> None:
    assert information_gains([np.array([-1.0])]).tolist() == []
    for wrong in ([], [np.array([])]):
        with pytest.raises(ValueError, match="at least one token"):
            information_gains(wrong)


def test_state_scores_and_reward_of_the_worked_example() -> None:
    here, there = learning_potential(SEEN_FOUR, clock=10), learning_potential(SEEN_TWO, clock=10)
    assert (here, there) == pytest.approx((0.5623, 0.3162), abs=5e-5)
    assert rollouts_from(here) == 5
    assert novelty_weight(4) == pytest.approx(0.3352, abs=5e-5)
    reward = state_reward(here, there, visits=4, has_moved=True, success_reward=0.0)
    assert reward == pytest.approx(0.3757, abs=5e-5)


def test_the_shipped_alpha_ends_exploration_at_the_first_success() -> None:
    potential = learning_potential(SEEN_FOUR, clock=10, alpha=50.0)
    assert potential == pytest.approx(3e-13, rel=0.1)
    assert rollouts_from(potential) == 1


def test_a_success_pays_half_and_standing_still_nothing() -> None:
    still = state_reward(0.5, 0.5, visits=0, has_moved=False, success_reward=0.0)
    won = state_reward(0.5, 0.5, visits=0, has_moved=False, success_reward=1.0)
    assert (still, won, novelty_weight(0)) == (0.0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("state", "potential"),
    [
        (StateCounts(visits=0, successes=0), 1.0),
        (StateCounts(visits=9, successes=0), 1.0),
        (StateCounts(visits=10, successes=0), 0.0),
        (StateCounts(visits=20, successes=2), 0.0),  # a tenth is not more than a tenth
        (StateCounts(visits=16, successes=4), 10**-0.25),
    ],
)
def test_a_state_is_given_up_after_ten_failures_with_too_little_success(state: StateCounts, potential: float) -> None:
    assert learning_potential(state, clock=10) == pytest.approx(potential)
    assert rollouts_from(learning_potential(state, clock=1)) in (0, 8)


@given(st.integers(1, 50).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), st.integers(1, 10**6))
def test_a_potential_lies_within_zero_and_one_and_falls_with_time(counts: tuple[int, int], clock: int) -> None:
    state = StateCounts(*counts)
    now, later = learning_potential(state, clock=clock), learning_potential(state, clock=clock + 1)
    assert 0.0 <= later <= now <= 1.0
    assert 0 <= rollouts_from(now) <= 8


def test_counts_and_clocks_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="3 successes in 2 visits"):
        StateCounts(visits=2, successes=3)
    with pytest.raises(ValueError, match="clock is 0"):
        learning_potential(SEEN_TWO, clock=0)
