"""Whether two policies differ: exact tests, intervals, and how many more episodes would tell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.reward.evaluators.differences import (
    compare_outcomes,
    compare_scores,
    mean_interval,
    pairs_for_outcomes,
    pairs_for_scores,
)

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


def test_mcnemar_by_hand() -> None:
    # 1 lost and 9 gained of 30: p = 2 * (1 + 10) / 2^10
    first = [True] * 11 + [False] * 19
    second = [False] + [True] * 19 + [False] * 10
    found = compare_outcomes(first, second)
    assert found.p == pytest.approx(22 / 1024)
    assert (found.verdict, found.mean, found.more_pairs) == ("better", pytest.approx(8 / 30), None)
    assert compare_outcomes(second, first).verdict == "worse"


def test_pairs_that_agree_decide_nothing_and_no_number_of_them_would() -> None:
    found = compare_outcomes([True, False] * 10, [True, False] * 10)
    assert (found.verdict, found.p, found.more_pairs, found.low) == ("undecided", 1.0, None, None)


def test_an_undecided_difference_says_how_many_more_pairs_would_decide_it() -> None:
    # 3 of 10 pairs differ, all gained: p = 2 / 2^3; d = p = 0.3 needs 1.96^2 p / d^2 with (p - d^2) = 0.21
    found = compare_outcomes([False] * 10, [True] * 3 + [False] * 7)
    assert (found.p, found.verdict) == (0.25, "undecided")
    assert found.more_pairs == pairs_for_outcomes(0.3, 0.3) - 10 == 24 - 10


@pytest.mark.parametrize(
    ("differing", "difference", "pairs"),
    [(0.3, 0.1, 234), (0.1, 0.1, 77), (0.3, -0.1, 234)],  # (1.96 sqrt(.3) + .8416 sqrt(.29))^2 / .01
)
def test_pairs_for_a_difference_in_success_by_hand(differing: float, difference: float, pairs: int) -> None:
    assert pairs_for_outcomes(differing, difference) == pairs


def test_pairs_for_a_difference_in_scores_by_hand() -> None:
    assert pairs_for_scores(0.5, 0.1) == 197  # (1.96 + 0.8416)^2 * 25
    assert pairs_for_scores(0.5, -0.1) == 197


def test_scores_are_decided_by_the_interval_of_their_difference() -> None:
    first, second = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.4, 0.4, 0.7, 0.6, 0.9, 0.8]
    found = compare_scores(first, second)
    assert (found.verdict, found.mean) == ("better", pytest.approx(1.7 / 6))
    assert found.low is not None
    assert 0.2 <= found.low < 1.7 / 6
    assert compare_scores(first, second, higher_is_better=False).verdict == "worse"
    assert compare_scores(second, first).verdict == "worse"


def test_five_pairs_decide_nothing_however_they_differ() -> None:
    five, six = compare_scores([0.0] * 5, [1.0] * 5), compare_scores([0.0] * 6, [1.0] * 6)
    assert (five.verdict, five.more_pairs, six.verdict) == ("undecided", 1, "better")


def test_what_rounding_makes_of_equal_scores_is_no_difference() -> None:
    found = compare_scores([0.1 + 0.2] * 8, [0.3] * 8)
    assert (found.verdict, found.mean, found.more_pairs) == ("undecided", 0.0, None)


def test_equal_values_have_no_interval_and_others_have_one_within_their_range() -> None:
    assert mean_interval([]) is None
    assert mean_interval([0.3] * 4) is None
    low, high = mean_interval([0.0] * 9 + [1.0]) or (None, None)
    assert low is not None
    assert high is not None
    assert 0 <= low < 0.1 < high <= 1


@pytest.mark.parametrize(("first", "second"), [([], []), ([True], [True, False])])
def test_what_makes_no_pairs_is_refused(first: list[bool], second: list[bool]) -> None:
    with pytest.raises(ValueError, match="make no pairs"):
        compare_outcomes(first, second)


@given(PAIRS)
def test_a_comparison_turned_round_says_the_opposite(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    there, back = compare_outcomes(first, second), compare_outcomes(second, first)
    opposite = {"better": "worse", "worse": "better", "undecided": "undecided"}
    assert (there.verdict, there.mean, there.p) == (opposite[back.verdict], -back.mean, back.p)
    assert there.more_pairs == back.more_pairs
