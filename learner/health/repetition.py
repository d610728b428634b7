"""N-gram repetition between responses to different states: templates show here while the reward still holds."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_N: Final = 4
_NONE: Final = -1
"""Fills a response that is shorter than that: no token's id."""


def repetition(responses: Iterable[tuple[Hashable, Sequence[int]]]) -> float:
    """N-gram repetition: share of 4-grams that also occur in a response to something else; 0 without responses.

    Every occurrence counts, so a batch of one template is near 1 and a batch of unlike responses near 0. A response of
    fewer than 4 tokens is one n-gram of its own length. Answers to the same state may resemble each other and are not
    compared. It grows with the batch: compare batches of one size. Ours, after distinct-n (arXiv 1510.03055), which
    also counts repeats in one response.

    Args:
        responses: what was answered (such as group and anchor), and the token ids of the answer, at least one.
    """
    numbers: dict[Hashable, int] = {}
    asked: list[int] = []
    """Of each response: the number of what it answered."""
    said: list[NDArray[np.int64]] = []
    for key, tokens in responses:
        asked.append(numbers.setdefault(key, len(numbers)))
        said.append(np.pad(np.asarray(tokens, np.int64), (0, max(0, _N - len(tokens))), constant_values=_NONE))
    if not said:
        return 0.0
    counts = [len(tokens) - _N + 1 for tokens in said]
    which, of = _grams(said), np.repeat(asked, counts)
    lowest, highest = np.full(len(which), len(numbers)), np.full(len(which), -1)
    np.minimum.at(lowest, which, of)
    np.maximum.at(highest, which, of)
    return float(np.mean((lowest != highest)[which]))


def _grams(said: Sequence[NDArray[np.int64]]) -> NDArray[np.intp]:
    """The number of each 4-gram of each response: equal ones have the same.

    Four ids do not fit into 64 bits, so pairs are numbered first.
    """
    tokens = _numbered(np.concatenate(said))
    pairs = _numbered(tokens[:-1] * len(tokens) + tokens[1:])
    grams = pairs[:-2] * len(tokens) + pairs[2:]
    starts = np.ones(len(tokens), bool)
    for k in range(1, _N):
        starts[np.cumsum([len(each) for each in said]) - k] = False
    return _numbered(grams[starts[: len(grams)]])


def _numbered(values: NDArray[np.integer[Any]]) -> NDArray[np.intp]:
    """Numbers from 0 on in the place of values."""
    return np.unique(values, return_inverse=True)[1]
