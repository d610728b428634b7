"""Of the states that episodes meet, how many are met again, and what in an anchor keeps them from it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.actors.checks.recurrence import Recurrence, recurrence

WALKS = st.lists(st.lists(st.sampled_from("ABCDEF"), max_size=6), max_size=5)


def of_one_task(*walks: str) -> Recurrence:
    return recurrence([[walk.split(",") for walk in walks]])


def test_states_are_counted_by_hand() -> None:
    found = recurrence(
        [
            [["S", "A", "B"], ["S", "A", "C", "S"]],  # A twice; B and C once; S is where it starts
            [["T", "A"], ["T", "T", "A"]],  # another task: its A is another state, met twice
        ]
    )
    assert (found.episodes, found.states, found.once) == (4, 4, 2)


@given(tasks=st.lists(WALKS, max_size=4))
def test_no_more_states_are_met_once_than_are_met(tasks: list[list[list[str]]]) -> None:
    found = recurrence(tasks)
    assert 0 <= found.once <= found.states
    doubled = recurrence([[*walks, *walks] for walks in tasks])
    assert (doubled.once, doubled.states) == (0, found.states)


@pytest.mark.parametrize(
    "walks",
    [
        ["s 0,a 1,b 2,a 3", "s 0,b 1,b 2,a 3,s 4"],
        ["s,a 1,b 2,a 3,b 4,a 5", "s,b 1,b 2,a 3,s 4"],  # the start has none
        ["room 7 step 0 of 9,room 3 step 1 of 9,room 5 step 2 of 9,room 3 step 3 of 9"] * 2,
        ["60 s left,58 s left,51 s left,50 s left", "60 s left,59 s left,55 s left,41 s left"],
    ],
)
def test_a_number_that_moves_one_way_in_every_turn_is_a_counter(walks: list[str]) -> None:
    found = of_one_task(*walks)
    assert found.counter is not None
    assert found.complaint is not None
    assert found.complaint[0].startswith("the anchor holds a counter")


@pytest.mark.parametrize(
    "walks",
    [
        ["0 0,0 1,1 1,1 2,2 2,2 3,3 3"],  # a walk that always gets on, in one coordinate or the other
        ["1,2,3,2,3,4,5", "1,2,3,4,5,6,7"],  # one episode goes back
        ["a 0,a 1,a 2,a 3"],  # too short to tell
        ["hall,attic,hall,cellar,hall,attic,hall"],
    ],
)
def test_a_number_that_stands_or_comes_back_is_none(walks: list[str]) -> None:
    found = of_one_task(*walks)
    assert found.counter is None
    assert found.complaint is None


@pytest.mark.parametrize(
    "walk",
    [
        ["-", "-n", "-ne", "-nee", "-neen", "-neens", "-neense"],
        ['["go"]', '["go", "a"]', '["go", "a", "b"]', *[f'["go", "a", "b"{", 1" * n}]' for n in (1, 2, 3, 4)]],
        [f"Turn {n} of 10\n{'You moved. ' * n}What next?" for n in range(8, 16)],
        ["new first", *[f"{'then ' * n}new first" for n in range(1, 8)]],
    ],
    ids=["letters", "json", "under a counter", "newest first"],
)
def test_an_anchor_that_repeats_the_last_one_and_goes_on_is_a_history(walk: list[str]) -> None:
    found = recurrence([[walk]])
    assert found.history is not None
    assert found.complaint is not None
    assert found.complaint[0].startswith("the anchor holds the history")


@pytest.mark.parametrize(
    "walk",
    [
        ["8", "9", "10", "11", "10", "11", "12", "13"],  # a number with more digits
        [
            "hall",
            "hall, lamp",
            "attic, lamp",
            "attic, lamp, key",
            "hall, lamp, key",
            "hall, key",
            "cellar, key",
            "gate",
        ],
        ["closed", "closed", "closed", "closed", "closed", "closed", "closed and locked"],
    ],
)
def test_an_anchor_that_grows_now_and_then_is_none(walk: list[str]) -> None:
    assert recurrence([[walk]]).history is None


def test_states_that_are_met_once_are_complained_of_in_numbers() -> None:
    found = recurrence([[["S", *[f"{letter}{other}" for letter in "abcdef"]] for other in "uvw"]])
    assert (found.states, found.once) == (18, 18)
    assert found.complaint is not None
    assert found.complaint[0] == "states hardly recur: of 18 states that 3 random episodes met, 18 were met once"


def test_episodes_of_one_turn_have_nothing_to_recur() -> None:
    found = of_one_task("S", "S")
    assert (found.states, found.complaint) == (0, None)
    assert found.in_words == "2 random episodes never left the states in which they start"
