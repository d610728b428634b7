"""Repetition over responses to different states, counted by hand."""

from hypothesis import given
from hypothesis import strategies as st

from milepost.learner.health.repetition import repetition


def test_one_template_for_all_states_is_all_repetition() -> None:
    assert repetition([(state, [1, 2, 3, 4, 5, 6]) for state in "abc"]) == 1.0


def test_unlike_responses_do_not_repeat() -> None:
    assert repetition([("a", [1, 2, 3, 4, 5]), ("b", [2, 3, 4, 6, 5])]) == 0.0


def test_every_occurrence_of_a_shared_n_gram_counts() -> None:
    # 4-grams of a: 1234 2345 3456; of b: 1234 2347; shared is 1234, so two of five occurrences
    assert repetition([("a", [1, 2, 3, 4, 5, 6]), ("b", [1, 2, 3, 4, 7])]) == 2 / 5


def test_answers_to_the_same_state_and_repeats_inside_a_response_are_no_repetition() -> None:
    assert repetition([("a", [1, 2, 1, 2, 1, 2, 1]), ("a", [1, 2, 1, 2, 1, 2, 1])]) == 0.0


def test_a_response_shorter_than_the_n_gram_is_compared_as_a_whole() -> None:
    assert repetition([("a", [1, 2]), ("b", [1, 2]), ("c", [1])]) == 2 / 3
    # the same tokens at the start of a longer response are another n-gram
    assert repetition([("a", [1, 2]), ("b", [1, 2, 3, 4])]) == 0.0


def test_no_response_repeats_nothing() -> None:
    assert repetition([]) == 0.0


responses = st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 2), min_size=1, max_size=8)), max_size=8)


@given(responses)
def test_the_order_of_the_responses_does_not_matter(given_: list[tuple[int, list[int]]]) -> None:
    shuffled = sorted(given_, key=lambda pair: (pair[1], pair[0]))
    assert repetition(shuffled) == repetition(given_)
    assert 0.0 <= repetition(given_) <= 1.0
