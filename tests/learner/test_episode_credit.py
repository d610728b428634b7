"""Credit of an update, episode by episode, as it is recorded for people."""

import doctest

import pytest

from milepost.learner import episode_credit
from milepost.learner.credit.assignment import Credit, CreditGroup
from milepost.learner.credit.filter import Verdict, weighted
from milepost.learner.credit.strategies.crbc import CRBC, CRBCConfig
from milepost.learner.credit.strategies.starpo import StarPO, StarPOConfig
from milepost.learner.episode_credit import credits_of_groups

GROUP = CreditGroup.from_walks("A x B y C success", "A z D failure")
HALF = Verdict(keep=True, reason="selected", score=0.5, weight=0.5)


def assigned() -> Credit:
    """0.5 for each turn of the success, -0.5 for the failure's."""
    return StarPO(StarPOConfig(baseline="dr_grpo")).assign(GROUP)


def test_each_turn_has_the_strategys_credit_and_what_the_loss_used_of_it() -> None:
    [[won, lost]] = credits_of_groups([assigned()], weighted([assigned()], [HALF]), [True])
    assert (won.turns, won.advantages) == ([0.5, 0.5], [0.25, 0.25])
    assert (lost.turns, lost.advantages) == ([-0.5], [-0.25])
    assert (won.trajectory, lost.trajectory) == (0.5, -0.5)
    assert won.token_advantages is None


def test_a_group_that_is_not_trained_on_has_credit_and_no_advantage() -> None:
    dropped, kept = credits_of_groups([assigned(), assigned()], [assigned()], [False, True])
    assert [episode.advantages for episode in dropped] == [None, None]
    assert [episode.turns for episode in dropped] == [[0.5, 0.5], [-0.5]]
    assert [episode.advantages for episode in kept] == [[0.5, 0.5], [-0.5]]


def test_every_kept_group_has_its_own_credit() -> None:
    with pytest.raises(ValueError, match="2 credits were used, 1 groups are kept"):
        credits_of_groups([assigned()], [assigned(), assigned()], [True])


def test_a_turn_says_whether_it_was_compared_with_others_of_its_state() -> None:
    [[won, lost]] = credits_of_groups([CRBC(CRBCConfig()).assign(GROUP)], [], [False])
    assert won.compared == [True, False], "both were in A, nobody else was in B"
    assert lost.compared == [True]


def test_the_worked_example() -> None:
    assert doctest.testmod(episode_credit).failed == 0
