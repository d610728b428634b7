"""G2PO: the value of the next state, compared within the state and within the group, by hand."""

import dataclasses
import itertools
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from milepost.learner.credit.assignment import INVALID, Credit, CreditGroup, CreditTrajectory, CreditTurn
from milepost.learner.credit.strategies.g2po import G2PO, G2POConfig
from tests.learner.credit.toy4 import assert_turns_equal, toy4

STEP = ([1.4494, 1.7501], [1.4494, -2.6155, -1.5606], [-1.6692, 2.7140, 1.7501], [-1.6692, -0.0378, -1.5606])


def path(outcome: str, states: str, *, invalid: bool = False, reward: float = 0.0) -> CreditTrajectory:
    """A trajectory from state to state, which ends in the last; `invalid` turns garble their first action."""
    turns = tuple(
        CreditTurn(s, INVALID if invalid and t == 0 else n, n, reward, invalid and t == 0, num_tokens=1)
        for t, (s, n) in enumerate(itertools.pairwise(states))
    )
    return CreditTrajectory(outcome, turns)


def assign(*trajectories: CreditTrajectory, **config: object) -> Credit:
    return G2PO(G2POConfig(**config)).assign(CreditGroup("g", trajectories))


def test_a_states_value_is_the_mean_discounted_success_of_its_visits() -> None:
    # A: (.95^2 + 0 + .95^3 + 0) / 4. B: (.95 + 0 + .95) / 3. C: (0 + .95^2 + 0 + 0) / 4.
    credit = G2PO(G2POConfig()).assign(toy4())
    assert credit.state_value == pytest.approx({"A": 0.43996875, "B": 1.9 / 3, "C": 0.225625}, rel=1e-12)


def test_step_advantages_match_the_worked_example() -> None:
    credit = G2PO(G2POConfig()).assign(toy4())
    assert_turns_equal(credit.step_adv, STEP)
    assert all(covered.tolist() == [1] * len(covered) for covered in credit.coverage)
    assert credit.diagnostics["singleton_share"] == 0.0


def test_the_two_components_of_the_first_turn_add_up() -> None:
    # c1: V(B) twice and V(C) twice at A, +-.8660. c2: .1934 within all eleven gains, .5834.
    v = {"A": 0.43996875, "B": 1.9 / 3, "C": 0.225625, "won": 1.0, "lost": 0.0}
    moves = ["AB", "Bwon", "AB", "BC", "Clost", "AC", "CB", "Bwon", "AC", "CC", "Clost"]
    gains = np.array([v[move[1:]] - v[move[0]] for move in moves])
    c2 = (gains - gains.mean()) / gains.std(ddof=1)
    assert c2[0] == pytest.approx(0.5834, abs=5e-5)
    credit = G2PO(G2POConfig()).assign(toy4())
    assert credit.step_adv[0][0] == pytest.approx(0.75**0.5 + c2[0], rel=1e-9)


def test_without_scale_both_means_are_subtracted_only() -> None:
    # A is met twice: v' = V(B) = .5 and 0. V(A) = .125, V(B) = .5 (gamma .5). Gains .375, .5, -.125 with mean .25.
    credit = assign(path("success", "ABZ"), path("failure", "AZ"), gamma=0.5, scale="none")
    assert credit.state_value == {"A": 0.125, "B": 0.5}
    assert credit.step_adv[0].tolist() == pytest.approx([0.25 + 0.125, 0.0 + 0.25])
    assert credit.step_adv[1].tolist() == pytest.approx([-0.25 - 0.375])


def test_a_state_met_once_is_judged_within_the_group_only() -> None:
    credit = assign(path("success", "ABZ"), path("failure", "AZ"), gamma=0.5)
    gains = np.array([0.375, 0.5, -0.125])
    assert credit.step_adv[0][1] == pytest.approx((0.5 - 0.25) / gains.std(ddof=1))
    assert credit.diagnostics["singleton_share"] == pytest.approx(1 / 3)
    assert [covered.tolist() for covered in credit.coverage] == [[1, 1], [1]]


def test_a_single_turn_has_nothing_to_be_compared_with() -> None:
    credit = assign(path("success", "AB"))
    assert credit.step_adv[0].tolist() == [0.0]
    assert credit.coverage[0].tolist() == [0]
    assert credit.state_value == {"A": 0.95}


def test_success_is_the_recorded_outcome_whatever_the_rewards_are() -> None:
    plain = G2PO(G2POConfig()).assign(toy4())
    shaped = CreditGroup(
        "g",
        tuple(
            dataclasses.replace(t, turns=tuple(msgspec.structs.replace(turn, reward=0.3) for turn in t.turns))
            for t in toy4().trajectories
        ),
    )
    credit = G2PO(G2POConfig()).assign(shaped)
    assert credit.state_value == plain.state_value
    for have, want in zip(credit.step_adv, plain.step_adv, strict=True):
        np.testing.assert_array_equal(have, want)
    # Returns .6, .9, .9, .9: the rewards do move the trajectory advantage.
    np.testing.assert_allclose(credit.traj_adv, [-1.5, 0.5, 0.5, 0.5], rtol=1e-9)


def test_the_penalty_counts_within_the_state_only() -> None:
    # All three end at once in failure: v' = 0, so only the penalty tells them apart, and gains don't differ.
    credit = assign(path("failure", "AZ"), path("failure", "AZ", invalid=True), path("failure", "AZ"))
    # .1 less its mean .1 / 3, over the least scale .5.
    expected = [0.2 / 3, -0.4 / 3, 0.2 / 3]
    np.testing.assert_allclose(np.concatenate(credit.step_adv), expected, rtol=1e-12)
    free = assign(path("failure", "AZ"), path("failure", "AZ", invalid=True), invalid_penalty=0.0)
    assert [steps.tolist() for steps in free.step_adv] == [[0.0], [0.0]]


def test_a_group_without_success_or_invalid_turns_earns_no_step_credit() -> None:
    credit = assign(*(CreditTrajectory("failure", t.turns) for t in toy4().trajectories))
    assert set(credit.state_value.values()) == {0.0}
    assert all(not np.any(steps) for steps in credit.step_adv)


walks = st.lists(
    st.tuples(st.sampled_from(["success", "failure", "truncated"]), st.text("ABC", min_size=2, max_size=7)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60)
@given(walks)
def test_values_are_probabilities_and_the_credit_of_a_group_sums_to_zero(paths: list[tuple[str, str]]) -> None:
    credit = assign(*(path(outcome, states) for outcome, states in paths))
    assert all(0.0 <= value <= 0.95 for value in credit.state_value.values())
    assert abs(math.fsum(np.concatenate(credit.step_adv))) < 1e-8


@settings(max_examples=60)
@given(walks, st.randoms(use_true_random=False))
def test_values_do_not_depend_on_the_order_of_the_trajectories(paths: list[tuple[str, str]], random: object) -> None:
    shuffled = list(paths)
    random.shuffle(shuffled)
    one, other = (assign(*(path(outcome, states) for outcome, states in order)) for order in (paths, shuffled))
    assert one.state_value == other.state_value


@pytest.mark.parametrize("setting", [{"gamma": 0.0}, {"gamma": 1.01}, {"scale": "half"}, {"w_step": -1.0}])
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        G2POConfig(**setting)
