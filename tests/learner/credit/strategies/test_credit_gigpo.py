"""GiGPO: returns compared within the visits of a state, by hand."""

import msgspec
import numpy as np
import pytest
from pydantic import ValidationError

from milepost.learner.credit.assignment import INVALID, CreditGroup, CreditTrajectory, CreditTurn
from milepost.learner.credit.returns import discounted_returns
from milepost.learner.credit.strategies.gigpo import GiGPO, GiGPOConfig
from tests.learner.credit.toy4 import assert_turns_equal, toy4

# Written without the epsilon of the public code, which turns .57735 into .5773.
STEP = ([0.9098, 0.5774], [-0.8655, -1.1547, -0.5], [0.8211, 1.5, 0.5774], [-0.8655, -0.5, -0.5])


def visit(anchor: str, reward: float, *, invalid: bool = False) -> CreditTrajectory:
    """A trajectory of one turn."""
    turn = CreditTurn(anchor, INVALID if invalid else "x", "end", reward, invalid, num_tokens=1)
    return CreditTrajectory("success" if reward > 0 else "failure", (turn,))


def step_credit(group: CreditGroup, **settings: object) -> list[float]:
    credit = GiGPO(GiGPOConfig(**settings)).assign(group)
    return [float(a) for turns in credit.step_adv for a in turns]


def test_returns_are_discounted_once_per_turn() -> None:
    returns = discounted_returns(toy4(), gamma=0.95)
    np.testing.assert_allclose(returns, [0.95, 1, 0, 0, 0, 0.9025, 0.95, 1, 0, 0, 0], rtol=1e-12)


def test_rewards_on_the_way_count_in_every_return_before_them() -> None:
    turns = tuple(CreditTurn(s, "x", n, r, False, num_tokens=1) for s, n, r in (("A", "B", 2.0), ("B", "C", 4.0)))
    group = CreditGroup("g", (CreditTrajectory("success", turns),))
    assert discounted_returns(group, gamma=0.5).tolist() == [4.0, 4.0]


def test_step_advantages_match_the_worked_example() -> None:
    credit = GiGPO(GiGPOConfig()).assign(toy4())
    assert_turns_equal(credit.step_adv, STEP)
    assert all(covered.tolist() == [1] * len(covered) for covered in credit.coverage)
    assert credit.state_value == {}
    assert credit.diagnostics["states"] == 3.0


def test_totals_add_the_trajectory_advantage_once() -> None:
    credit = GiGPO(GiGPOConfig()).assign(toy4())
    np.testing.assert_allclose(credit.traj_adv, [0.8660, -0.8660, 0.8660, -0.8660], atol=5e-5, rtol=0)
    assert_turns_equal(
        credit.total,
        ([1.7759, 1.4434], [-1.7315, -2.0207, -1.3660], [1.6871, 2.3660, 1.4434], [-1.7315, -1.366, -1.366]),
    )


def test_without_scale_the_mean_of_the_state_is_subtracted_only() -> None:
    # A: returns .95, 0, .9025, 0 with mean .463125. B: 1, 0, 1. C: 0, .95, 0, 0 with mean .2375.
    credit = GiGPO(GiGPOConfig(scale="none")).assign(toy4())
    expected = (
        [0.486875, 1 / 3],
        [-0.463125, -2 / 3, -0.2375],
        [0.439375, 0.7125, 1 / 3],
        [-0.463125, -0.2375, -0.2375],
    )
    for have, want in zip(credit.step_adv, expected, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-12)


def test_a_good_action_followed_by_mistakes_is_punished_as_the_paper_would() -> None:
    credit = GiGPO(GiGPOConfig()).assign(toy4())
    assert credit.step_adv[1][0] < 0 < credit.step_adv[2][0]


def test_a_singleton_state_gets_no_step_credit() -> None:
    credit = GiGPO(GiGPOConfig()).assign(CreditGroup("g", (visit("A", 1.0), visit("B", 0.0), visit("B", 1.0))))
    assert credit.step_adv[0].tolist() == [0.0]
    assert [int(covered[0]) for covered in credit.coverage] == [0, 1, 1]
    assert credit.diagnostics["coverage"] == pytest.approx(2 / 3)


def test_equal_returns_of_peers_give_exactly_zero() -> None:
    assert step_credit(CreditGroup("g", (visit("A", 0.1 + 0.2), visit("A", 0.3), visit("A", 0.3)))) == [0.0] * 3


def test_revisits_within_one_trajectory_are_peers() -> None:
    turns = tuple(CreditTurn("A", "x", "A", r, False, num_tokens=1) for r in (0.0, 1.0))
    # Returns .5 and 1 with gamma .5: .25 each side of their mean, std .25 * sqrt(2).
    got = step_credit(CreditGroup("g", (CreditTrajectory("success", turns),)), gamma=0.5)
    np.testing.assert_allclose(got, [-(0.5**0.5), 0.5**0.5], rtol=1e-12)


def test_the_penalty_is_that_of_the_invalid_turn_only() -> None:
    turns = (
        CreditTurn("A", "x", "A", 0.0, False, num_tokens=1),
        CreditTurn("A", INVALID, "A", 0.0, True, num_tokens=1),
        CreditTurn("A", "x", "B", 1.0, False, num_tokens=1),
    )
    group = CreditGroup("g", (CreditTrajectory("success", turns),))
    # Returns .25, .5 and 1 about their mean .58333; the penalty .1 about its mean .03333.
    expected = [-0.33333 + 0.03333, -0.08333 - 0.06667, 0.41667 + 0.03333]
    assert step_credit(group, gamma=0.5, scale="none") == pytest.approx(expected, abs=1e-5)


def test_every_turn_of_a_trajectory_with_an_invalid_turn_has_one_trajectory_advantage() -> None:
    garbled = msgspec.structs.replace(toy4().trajectories[1].turns[0], action=INVALID, invalid=True)
    broken = CreditTrajectory("truncated", (garbled, *toy4().trajectories[1].turns[1:]))
    group = CreditGroup("g", (toy4().trajectories[0], broken))
    credit = GiGPO(GiGPOConfig(w_step=0.0)).assign(group)
    # Returns 1 and 0, and a penalty of .1, both about their means and over the deviation of the returns.
    np.testing.assert_allclose(credit.total[1], [-(0.5 + 0.05) / 0.5**0.5] * 3, rtol=1e-12)


def test_anchors_that_are_alike_are_one_state_where_similarity_says_so() -> None:
    # Two of twenty characters differ: 2 * 18 / 40 = .9.
    near, nearer, far = "You are in room 0001", "You are in room 0010", "A kitchen with a mug"
    group = CreditGroup("g", (visit(near, 1.0), visit(nearer, 0.0), visit(far, 0.0)))
    assert step_credit(group) == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(step_credit(group, similarity=0.9), [0.5**0.5, -(0.5**0.5), 0.0], rtol=1e-12)


def test_clusters_do_not_depend_on_the_order_of_the_trajectories() -> None:
    # "aaab" is .75 like both others, which are .5 like each other: who comes first must not decide.
    visits = (visit("aaaa", 1.0), visit("aaab", 0.0), visit("aabb", 3.0))
    forwards = step_credit(CreditGroup("g", visits), similarity=0.75)
    backwards = step_credit(CreditGroup("g", visits[::-1]), similarity=0.75)
    assert forwards == backwards[::-1]
    assert forwards[2] == 0.0
    assert forwards[0] > 0 > forwards[1]


def test_the_most_visited_anchor_represents_its_cluster() -> None:
    visits = (visit("aaaa", 1.0), visit("aaab", 0.0), visit("aaab", 0.0), visit("aabb", 3.0))
    got = step_credit(CreditGroup("g", visits), similarity=0.75, scale="none")
    assert got == pytest.approx([0.0, -1.0, -1.0, 2.0])


def test_long_texts_of_frequent_characters_are_still_alike() -> None:
    # From 200 characters on the standard matcher ignores characters that make up more than 1 %: all of these.
    one, other = "ab" * 150, "ab" * 149 + "bb"
    group = CreditGroup("g", (visit(one, 1.0), visit(other, 0.0)))
    np.testing.assert_allclose(step_credit(group, similarity=0.95), [0.5**0.5, -(0.5**0.5)], rtol=1e-12)


@pytest.mark.parametrize(
    "setting", [{"gamma": 0.0}, {"gamma": 1.1}, {"similarity": 0.0}, {"similarity": 1.1}, {"scale": "mean"}]
)
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GiGPOConfig(**setting)
