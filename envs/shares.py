"""Whose turn it is where several take turns by share: an endless order, the same in every process.

Nothing is drawn at random: at every place, what each one had lies less than one turn from its share.
"""

from __future__ import annotations

from collections.abc import Sequence


class ShareOrder:
    """The order in which K take turns, by Tijdeman's solution of the chairman assignment problem (Discrete Mathematics
    32, 1980): after n turns, the number of turns of each differs from n times its share by at most 1 - 1 / (2 K - 2).
    Shares of 3 and 1 make the order 0, 0, 1, 0, and again.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        """`shares` are K positive numbers; they need not add up to 1."""
        total = sum(shares)
        self._shares = [share / total for share in shares]
        self._counts = [0] * len(self._shares)
        self._order: list[tuple[int, int]] = []

    def at(self, place: int) -> tuple[int, int]:
        """Whose turn it is at `place`, from 0, and how many turns it had before."""
        if len(self._shares) == 1:
            return 0, place
        while len(self._order) <= place:
            self._extend()
        return self._order[place]

    def _extend(self) -> None:
        """Of those that may have a turn without being ahead of their share, the one that must have it soonest."""
        slack = 1 / (2 * len(self._shares) - 2)
        turns = len(self._order) + 1
        behind = [turns * share - count for share, count in zip(self._shares, self._counts, strict=True)]
        may = [k for k, lag in enumerate(behind) if lag >= slack] or range(len(behind))  # rounding may leave nobody
        chosen = min(may, key=lambda k: (1 - slack - behind[k]) / self._shares[k])
        self._order.append((chosen, self._counts[chosen]))
        self._counts[chosen] += 1
