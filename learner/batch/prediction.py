"""What a model reads of a micro-batch, which positions predict a trained token, and where in `[B, L]` that belongs.

A token is predicted one position before its own. Only these positions need logits or estimates. In a prefix tree a
token that several rows share is predicted once; what is found goes to all of them, and their gradients add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from milepost.learner.batch.pack import MicroBatch
from milepost.learner.batch.tree import Branch


class Layout(NamedTuple):
    """The tokens that pass through the model."""

    input_ids: Tensor
    """`[B, L]` for padded rows, `[1, N]` for a tree."""
    position_ids: Tensor | None = None
    """`[1, N]` for a tree."""
    branches: tuple[Branch, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """K predicted tokens. A dummy has one, which belongs nowhere, so that every parameter stays in the graph."""

    layout: Layout
    at: Tensor
    """`[K]`: the predicting position among those of the layout, row after row."""
    targets: Tensor
    """`[K]`: the token's id."""
    index: Tensor
    """`[M]`: which prediction each trained token of the samples has, row after row."""
    mask: Tensor
    """`[B, L]`, true at the M trained tokens."""

    def placed(self, values: Tensor) -> Tensor:
        """`values` `[K]` at the tokens they are about, `[B, L]`; 0 elsewhere. Carries the gradient.

        >>> from milepost.learner.batch.pack import collate
        >>> from milepost.learner.batch.sample import Sample
        >>> prediction = predict(collate([Sample.from_turn_index([-1, 0, -1, 1])]))
        >>> prediction.at.tolist(), prediction.placed(torch.tensor([0.5, 0.25])).tolist()
        ([0, 2], [[0.0, 0.5, 0.0, 0.25]])
        """
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values[self.index])


def predict(batch: MicroBatch) -> Prediction:
    """The trained tokens of `batch`, row after row, or in the order of its tree.

    >>> from milepost.learner.batch.pack import collate
    >>> from milepost.learner.batch.sample import Sample
    >>> rows = [Sample.from_turn_index([-1, -1, 0]), Sample.from_turn_index([-1, 0])]  # all token ids are 0
    >>> predict(collate(rows)).at.tolist(), predict(collate(rows, "tree")).at.tolist()
    ([1, 3], [0, 1])
    """
    tree, mask = batch.tree, batch.loss_mask
    if tree is None:
        layout, ids = Layout(batch.input_ids), batch.input_ids.flatten()
        places = mask.flatten().nonzero().squeeze(1)
        index = torch.arange(len(places), device=places.device)
    else:
        layout, ids = Layout(tree.token_ids[None], tree.positions[None], tree.branches), tree.token_ids
        places, index = torch.unique(tree.nodes[mask], return_inverse=True)
    if places.numel() == 0:
        places = places.new_ones(1)
    at = places - 1 if tree is None else tree.parents[places]
    return Prediction(layout, at=at, targets=ids[places], index=index, mask=mask)
