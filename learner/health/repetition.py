"""N-gram repetition between responses to different states: templates show here while the reward still holds."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Final

import numpy as np

_N: Final = 4


def repetition(responses: Iterable[tuple[Hashable, Sequence[int]]]) -> float:
    """N-gram repetition: share of 4-grams that also occur in a response to something else; 0 without responses.

    Every occurrence counts, so a batch of one template is near 1 and a batch of unlike responses near 0. A response of
    fewer than 4 tokens is one n-gram of its own length. Answers to the same state may resemble each other and are not
    compared. It grows with the batch: compare batches of one size, and give a sample of a large one (the cost is a
    dictionary entry per n-gram). Ours, after distinct-n (arXiv 1510.03055), which also counts repeats in one response.

    Args:
        responses: what was answered (such as group and anchor), and the token ids of the answer, at least one.
    """
    numbers: dict[Hashable, int] = {}
    grams: dict[tuple[int, ...], int] = {}
    asked: list[int] = []
    which: list[int] = []
    for key, tokens in responses:
        number = numbers.setdefault(key, len(numbers))
        for start in range(max(1, len(tokens) - _N + 1)):
            which.append(grams.setdefault(tuple(tokens[start : start + _N]), len(grams)))
            asked.append(number)
    if not which:
        return 0.0
    lowest, highest = np.full(len(grams), len(numbers)), np.full(len(grams), -1)
    np.minimum.at(lowest, which, asked)
    np.maximum.at(highest, which, asked)
    return float(np.mean((lowest != highest)[which]))
