import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.cluster.workbench.graph_layout import LAYER_PX, ROW_PX, layered, short_labels, shortened


def test_states_stand_in_layers_by_their_distance_from_the_start_and_ends_come_last() -> None:
    # 0 -> 1 -> 2, back to 0, a loop, and the end 3 that is reached at once.
    places = layered(4, [(0, 1), (1, 2), (2, 0), (1, 1), (0, 3)], starts=[0], ends=[3])
    assert (places[:, 0] / LAYER_PX).tolist() == [0, 1, 2, 3]


def test_neighbours_stand_near_each_other() -> None:
    # 0 splits into 1 and 2; 1 leads to 4 and 2 to 3: in the order of their rows the edges would cross.
    places = layered(5, [(0, 1), (0, 2), (1, 4), (2, 3)], starts=[0], ends=[])
    assert (places[1, 1] < places[2, 1]) == (places[4, 1] < places[3, 1])


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_no_two_states_stand_on_each_other(graph: tuple[int, list[tuple[int, int]]]) -> None:
    size, edges = graph
    places = layered(size, edges, starts=[0], ends=[size - 1] if size > 1 else [])
    assert np.all(np.isfinite(places))
    for i in range(size):
        for j in range(i):
            dx, dy = np.abs(places[i] - places[j])
            assert dx > 0 or dy > ROW_PX - 1e-6


def test_labels_leave_out_what_all_anchors_begin_with() -> None:
    assert short_labels(["963fca:0,0", "963fca:0,1", "963fca:1,0"], width=8) == ["0,0", "0,1", "1,0"]


def test_labels_keep_numbers_and_words_whole() -> None:
    assert short_labels(["room 12", "room 13"], width=8) == ["12", "13"]
    assert short_labels(["kitchen", "kitchenette"], width=11) == ["kitchen", "kitchenette"]


def test_one_anchor_keeps_its_name() -> None:
    assert short_labels(["lake:0,0"], width=9) == ["lake:0,0"]


def test_labels_of_texts_that_look_alike_differ() -> None:
    texts = [f"You stand in a {'very ' * n}long hall" for n in (9, 10, 11)]
    labels = short_labels(texts, width=12)
    assert len(set(labels)) == 3
    assert labels[0].endswith("hall")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("abc", "abc"),
        ("abcdefghijkl", "abcdef…jkl"),
        ("a\n\tb\x1b[31m\u202ec", "a b [31m c"),
        ("", ""),
    ],
)
def test_a_shortened_text_is_one_printable_line(text: str, label: str) -> None:
    assert shortened(text, width=10) == label
