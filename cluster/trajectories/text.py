"""Token ids as the text they stand for, cut where prompts and responses meet, control tokens included.

The pieces of a conversation, put together, are exactly what its ids decode to: a tokenizer may write a piece otherwise
when it stands alone (a character cut in two, a blank at the beginning), so the pieces are compared with the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from milepost.cluster.trajectories.recording import RecordedTurn

Decode = Callable[[list[int]], str]


def turn_texts(turns: Sequence[RecordedTurn], decode: Decode) -> list[tuple[str, str]]:
    """What each turn added to the prompt, and its response, as text."""
    texts: list[tuple[str, str]] = []
    starts = [k for k, turn in enumerate(turns) if not turn.continues]
    for begin, end in pairwise([*starts, len(turns)]):
        pieces = [ids for turn in turns[begin:end] for ids in (turn.prompt_ids, turn.response_ids)]
        parts = split_text(pieces, decode)
        texts += zip(parts[::2], parts[1::2], strict=True)
    return texts


def split_text(pieces: Sequence[list[int]], decode: Decode) -> list[str]:
    """One text per piece; joined, they are what all the ids together decode to.

    >>> letters = lambda ids: "".join(map(chr, ids)).strip()
    >>> split_text([[97, 98], [], [32, 99]], letters)
    ['ab', '', ' c']
    """
    ids = [token for piece in pieces for token in piece]
    whole = decode(ids)
    parts = [decode(piece) if piece else "" for piece in pieces]
    if "".join(parts) == whole:
        return parts
    ends = [min(len(decode(ids[:end])), len(whole)) for end in accumulate(map(len, pieces))]
    edges = [0, *accumulate([*ends[:-1], len(whole)], max)]
    return [whole[a:b] for a, b in pairwise(edges)]
