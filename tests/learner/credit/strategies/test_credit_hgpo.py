"""HGPO: returns compared within visits that share a history, by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from milepost.learner.credit.assignment import CreditGroup, CreditTrajectory, CreditTurn
from milepost.learner.credit.strategies.gigpo import GiGPO, GiGPOConfig
from milepost.learner.credit.strategies.hgpo import HGPO, HGPOConfig
from tests.learner.credit.toy4 import assert_turns_equal, toy4

# Without the epsilon of the public code, which turns .57735 into .5773.
STEP = ([1.0506, 0.8828], [-0.9993, -1.1657, -0.5774], [0.9481, 1.2928, 0.7071], [-0.9993, -0.8309, -0.5774])


def walk(states: str, reward: float) -> CreditTrajectory:
    """A trajectory through `states`, which earns `reward` in its last turn."""
    turns = tuple(
        CreditTurn(s, "x", n, reward * (t == len(states) - 1), False, num_tokens=1)
        for t, (s, n) in enumerate(zip(states, states[1:] + "!", strict=True))
    )
    return CreditTrajectory("success" if reward > 0 else "failure", turns)


def last_turns(*trajectories: CreditTrajectory, **config: object) -> list[float]:
    """Step advantage of the last turn of each trajectory."""
    credit = HGPO(HGPOConfig(gamma=1.0, **config)).assign(CreditGroup("g", trajectories))
    return [float(steps[-1]) for steps in credit.step_adv]


def test_one_state_of_history_matches_the_worked_example() -> None:
    credit = HGPO(HGPOConfig(history=1)).assign(toy4())
    assert_turns_equal(credit.step_adv, STEP)
    assert all(covered.tolist() == [1] * len(covered) for covered in credit.coverage)
    # Of the 11 turns, T1.1 and T2.1 share (A, B), T3.1 and T4.1 share (A, C).
    assert credit.diagnostics["shared_history"] == pytest.approx((7 * 1 + 4 * 2) / 11)


def test_two_levels_are_averaged_by_their_weights() -> None:
    # B: returns 1, 0, 1 give a_1 = .7071; (A, B): returns 1, 0 give a_2 = 1. (2 * .7071 + 3 * 1) / 5.
    credit = HGPO(HGPOConfig(history=1)).assign(toy4())
    assert credit.step_adv[0][1] == pytest.approx((2 * 0.5**0.5 + 3) / 5, rel=1e-12)


def test_alpha_sets_how_much_longer_histories_weigh() -> None:
    flat = HGPO(HGPOConfig(history=1, alpha=0.0)).assign(toy4())
    assert flat.step_adv[0][1] == pytest.approx((0.5**0.5 + 1) / 2, rel=1e-12)
    steep = HGPO(HGPOConfig(history=1, alpha=2.0)).assign(toy4())
    assert steep.step_adv[0][1] == pytest.approx((4 * 0.5**0.5 + 9) / 13, rel=1e-12)


def test_by_default_there_is_no_separate_trajectory_advantage() -> None:
    credit = HGPO(HGPOConfig(history=1)).assign(toy4())
    assert_turns_equal(credit.total, STEP)
    both = HGPO(HGPOConfig(history=1, w_trajectory=1.0)).assign(toy4())
    assert_turns_equal(both.total[:1], ([1.9166, 1.7489],))


def test_the_group_joins_the_average_as_peers_that_share_nothing() -> None:
    # T1.1: (1 * .8660 + 2 * .7071 + 3 * 1) / 6. T3.2 has no peer with (C, B): (1 * .8660 + 2 * .7071) / 3.
    credit = HGPO(HGPOConfig(history=1, include_group=True)).assign(toy4())
    assert credit.step_adv[0][1] == pytest.approx((0.75**0.5 + 2 * 0.5**0.5 + 3) / 6, rel=1e-12)
    assert credit.step_adv[2][2] == pytest.approx((0.75**0.5 + 2 * 0.5**0.5) / 3, rel=1e-12)


def test_in_a_group_of_one_the_group_level_says_nothing() -> None:
    group = CreditGroup("g", (walk("AB", 1.0),))
    credit = HGPO(HGPOConfig(include_group=True)).assign(group)
    assert credit.step_adv[0].tolist() == [0.0, 0.0]
    assert credit.coverage[0].tolist() == [0, 0]


def test_a_turn_that_equals_the_mean_of_its_nearest_peers_keeps_their_weight() -> None:
    # (A, C): returns 0, 1, 2, so the second has a_2 = 0. C: 0, 1, 2, 5 with mean 2 and std sqrt(3.5).
    walks = (walk("AC", 0.0), walk("AC", 1.0), walk("AC", 2.0), walk("BC", 5.0))
    got = last_turns(*walks, history=1)
    assert got[1] == pytest.approx((2 * -1 / 3.5**0.5 + 3 * 0) / 5, rel=1e-12)


def test_a_level_without_peers_carries_no_weight() -> None:
    walks = (walk("AC", 0.0), walk("BC", 2.0))
    assert last_turns(*walks, history=1) == pytest.approx([-1.0, 1.0])
    assert last_turns(*walks, history=4) == pytest.approx([-1.0, 1.0])


def test_histories_differ_by_order_and_do_not_reach_into_the_trajectory_before() -> None:
    # (A, B, C) and (B, A, C) share C alone. The last walk starts in C: no history, though another walk comes before.
    walks = (walk("ABC", 0.0), walk("BAC", 2.0), walk("C", 4.0))
    third = 8 / 3
    expected = [-2 / third**0.5, 0.0, 2 / third**0.5]
    np.testing.assert_allclose(last_turns(*walks, history=2), expected, atol=1e-12)


def test_histories_longer_than_every_trajectory_change_nothing() -> None:
    short, long = (HGPO(HGPOConfig(history=k)).assign(toy4()) for k in (2, 50))
    for have, want in zip(long.step_adv, short.step_adv, strict=True):
        np.testing.assert_array_equal(have, want)


def test_a_history_of_two_states_is_a_level_of_its_own() -> None:
    # k=1: D {0, 1, 4}; k=2: (C, D) {0, 1, 4}; k=3: (A, C, D) {0, 4}. Weights 2, 3, 4.
    walks = (walk("ACD", 0.0), walk("BCD", 1.0), walk("ACD", 4.0))
    mean, std = 5 / 3, (26 / 9) ** 0.5
    got = last_turns(*walks, history=2)
    assert got[0] == pytest.approx(((2 + 3) * (0 - mean) / std + 4 * -1) / 9, rel=1e-12)
    assert got[1] == pytest.approx((1 - mean) / std, rel=1e-12)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.text("AB", min_size=1, max_size=6), st.sampled_from([0.0, 0.3, 1.0])), min_size=1, max_size=6)
)
def test_without_history_hgpo_is_gigpo_with_the_populations_deviation(walks: list[tuple[str, float]]) -> None:
    group = CreditGroup("g", tuple(walk(states, reward) for states, reward in walks))
    ours = HGPO(HGPOConfig(history=0)).assign(group)
    plain = GiGPO(GiGPOConfig()).assign(group)
    anchors = [turn.anchor for trajectory in group.trajectories for turn in trajectory.turns]
    n = np.array([anchors.count(anchor) for anchor in anchors])
    expected = np.concatenate(plain.step_adv) * np.sqrt(n / np.maximum(n - 1, 1))
    np.testing.assert_allclose(np.concatenate(ours.step_adv), expected, atol=1e-9)
    assert [c.tolist() for c in ours.coverage] == [c.tolist() for c in plain.coverage]


@pytest.mark.parametrize("setting", [{"history": -1}, {"alpha": -1.0}, {"gamma": 0.0}, {"w_step": 0.0}])
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        HGPOConfig(**setting)
