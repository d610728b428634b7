"""Pieces of text, put together, are what all the ids decode to, whatever a tokenizer does at their edges."""

from hypothesis import given
from hypothesis import strategies as st

from milepost.cluster.trajectories.recording import RecordedTurn
from milepost.cluster.trajectories.text import split_text, turn_texts
from milepost.envs.dialogue import Dialogue

PIECES = st.lists(st.lists(st.integers(0, 383), max_size=6), max_size=8)


@given(PIECES)
def test_pieces_of_any_ids_join_to_the_decoded_whole(dialogue: Dialogue, pieces: list[list[int]]) -> None:
    def decode(ids: list[int]) -> str:
        return str(dialogue._tokenizer.decode(ids, skip_special_tokens=False))  # type: ignore[attr-defined]

    parts = split_text(pieces, decode)
    assert len(parts) == len(pieces)
    assert "".join(parts) == decode([token for piece in pieces for token in piece])


def test_a_character_that_is_cut_in_two_appears_once() -> None:
    def decode(ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    euro = list("€".encode())
    assert split_text([[97, *euro[:1]], [*euro[1:], 98]], decode) == ["a€", "b"]


def test_a_window_that_begins_anew_begins_its_text_anew() -> None:
    def decode(ids: list[int]) -> str:
        return "".join(map(chr, ids))

    turns = [
        RecordedTurn(prompt_ids=[97], continues=False, response_ids=[98]),
        RecordedTurn(prompt_ids=[99], continues=True, response_ids=[]),
        RecordedTurn(prompt_ids=[100, 101], continues=False, response_ids=[102]),
    ]
    assert turn_texts(turns, decode) == [("a", "b"), ("c", ""), ("de", "f")]
    assert turn_texts([], decode) == []
