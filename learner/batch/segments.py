"""Trained tokens by turn or by row: what sums and means over whole turns are taken over.

A row of a micro-batch is one `Sample`: a merged run of turns, and no row is ever cut over micro-batches. So whatever is
computed per turn or per row is exact in every micro-batch. An episode whose context was rewritten has several rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from milepost.learner.batch.pack import MicroBatch

Level = Literal["turn", "sequence"]
"""turn: the tokens that one answer of the policy sampled; sequence: all trained tokens of a row."""


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """The trained tokens of a micro-batch, `[N]` in row order, in S segments."""

    index: Tensor
    """`[N]`: the token's segment, below S."""
    count: Tensor
    """`[S]`: tokens of a segment, at least 1."""

    def total(self, values: Tensor) -> Tensor:
        """Sum of `values` `[N]` within each segment, `[S]`; carries a gradient.

        >>> Segments(index=torch.tensor([0, 0, 1]), count=torch.tensor([2, 1])).total(torch.tensor([1.0, 2.0, 5.0]))
        tensor([3., 5.])
        """
        return values.new_zeros(len(self.count)).index_add(0, self.index, values)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of `values` `[N]` within each segment, `[S]`; carries a gradient.

        >>> Segments(index=torch.tensor([0, 0, 1]), count=torch.tensor([2, 1])).mean(torch.tensor([1.0, 2.0, 5.0]))
        tensor([1.5000, 5.0000])
        """
        return self.total(values) / self.count


def segments(batch: MicroBatch, level: Level) -> Segments:
    """The segments of `batch`; a dummy has none.

    >>> from milepost.learner.batch.pack import collate
    >>> from milepost.learner.batch.sample import Sample
    >>> batch = collate([Sample.from_turn_index([-1, 0, 0, -1, 1])])
    >>> segments(batch, "turn").index.tolist(), segments(batch, "sequence").index.tolist()
    ([0, 0, 1], [0, 0, 0])
    """
    keys = torch.arange(len(batch.loss_mask), device=batch.loss_mask.device).unsqueeze(1).expand_as(batch.loss_mask)
    if level == "turn":
        keys = keys * (batch.turn_index.max() + 2) + batch.turn_index + 1
    _, index, count = torch.unique(keys[batch.loss_mask], return_inverse=True, return_counts=True)
    return Segments(index=index, count=count)
