"""What is remembered of a group, how it fades, and what of it can be used."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.learner.credit.assignment import CreditGroup, PastTransition
from milepost.learner.credit.history import FAINTEST, faded, grounded, merged, transitions
from tests.learner.credit.random_groups import groups, unhurried
from tests.learner.credit.toy4 import toy4


def moved(anchor: str, action: str, target: str, count: float = 1.0) -> PastTransition:
    return PastTransition(anchor, action, target, False, count)


def ended(anchor: str, action: str, *, won: bool, count: float = 1.0) -> PastTransition:
    return PastTransition(anchor, action, None, won, count)


def test_the_transitions_of_a_group_are_its_counts() -> None:
    assert transitions(toy4()) == (
        moved("A", "x", "B", 2.0),
        moved("A", "y", "C", 2.0),
        ended("B", "p", won=True, count=2.0),
        moved("B", "q", "C"),
        moved("C", "r", "B"),
        moved("C", "w", "C"),
        ended("C", "w", won=False, count=2.0),
    )


@unhurried
@given(group=groups())
def test_every_turn_is_remembered_once(group: CreditGroup) -> None:
    turns = sum(len(trajectory.turns) for trajectory in group.trajectories)
    assert sum(p.count for p in transitions(group)) == turns


def test_what_a_group_was_told_of_the_past_is_not_remembered_again() -> None:
    told = CreditGroup("g", toy4().trajectories, history=(moved("A", "x", "B", 9.0), ended("B", "p", won=True)))
    assert transitions(told) == transitions(toy4())


def test_counts_fade_by_the_factor_and_the_faintest_are_forgotten() -> None:
    past = (moved("A", "x", "B", 4.0), moved("A", "y", "B", 1.0), ended("B", "p", won=True, count=0.01))
    assert faded(past, 0.5) == (moved("A", "x", "B", 2.0), moved("A", "y", "B", 0.5))
    assert faded(past, 1.0) == past
    assert faded(past, 0.0) == ()
    assert faded((moved("A", "x", "B", 1.0),), FAINTEST) == (moved("A", "x", "B", FAINTEST),)


@pytest.mark.parametrize("factor", [-0.1, 1.1, float("nan")])
def test_a_history_cannot_grow_by_fading(factor: float) -> None:
    with pytest.raises(ValueError, match="fades by a factor from 0 to 1"):
        faded((), factor)


def test_merging_adds_counts_and_drops_the_smallest() -> None:
    past = (moved("A", "x", "B", 3.0), moved("A", "y", "B", 0.5), ended("A", "x", won=False, count=1.0))
    new = (moved("A", "x", "B", 1.0), ended("A", "x", won=True, count=1.0))
    assert merged(past, new, limit=9) == (
        moved("A", "x", "B", 4.0),
        ended("A", "x", won=False, count=1.0),
        ended("A", "x", won=True, count=1.0),
        moved("A", "y", "B", 0.5),
    )
    # Of the two that were counted once, the first in the order of names stays.
    assert merged(past, new, limit=2) == (moved("A", "x", "B", 4.0), ended("A", "x", won=False, count=1.0))


@unhurried
@given(first=groups(), second=groups(), limit=st.integers(1, 12))
def test_it_does_not_matter_which_group_came_first(first: CreditGroup, second: CreditGroup, limit: int) -> None:
    a, b = transitions(first), transitions(second)
    assert merged(a, b, limit=limit) == merged(b, a, limit=limit)
    assert len(merged(a, b, limit=limit)) <= limit


def test_a_transition_into_a_state_nobody_is_known_to_have_left_says_nothing() -> None:
    stays = [moved("A", "x", "B"), moved("A", "loop", "A"), ended("B", "p", won=False)]
    # Nothing is known of D, so nothing of C, which leads only there; the group itself knows E.
    lost = [moved("B", "y", "C"), moved("C", "z", "D")]
    saved = [moved("B", "v", "E")]
    assert grounded([*lost, *stays, *saved], {"E"}) == [*stays, *saved]


def test_of_a_long_chain_without_an_end_nothing_is_left() -> None:
    assert grounded([moved(f"{i}", "x", f"{i + 1}") for i in range(2000)], set()) == []
    assert len(grounded([moved(f"{i}", "x", f"{i + 1}") for i in range(2000)], {"2000"})) == 2000


def test_a_cycle_nobody_leaves_is_known() -> None:
    circle = [moved("A", "x", "B"), moved("B", "x", "A")]
    assert grounded(circle, set()) == circle


@unhurried
@given(group=groups())
def test_the_whole_past_of_a_group_says_something(group: CreditGroup) -> None:
    past = transitions(group)
    assert grounded(past, set()) == list(past)
