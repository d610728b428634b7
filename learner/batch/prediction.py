"""Which positions of a micro-batch predict a trained token, and where in `[B, L]` what is found there belongs.

A token is predicted one position before its own. Only these positions need logits or estimates.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from milepost.learner.batch.pack import MicroBatch


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """K predicted tokens. A dummy has one, which belongs nowhere, so that every parameter stays in the graph."""

    at: Tensor
    """`[K]`: the predicting position, in the micro-batch laid out row after row."""
    targets: Tensor
    """`[K]`: the token's id."""
    mask: Tensor
    """`[B, L]`, true at the predicted tokens."""

    def placed(self, values: Tensor) -> Tensor:
        """`values` `[K]` at the tokens they are about, `[B, L]`; 0 elsewhere. Carries the gradient.

        >>> from milepost.learner.batch.pack import collate
        >>> from milepost.learner.batch.sample import Sample
        >>> prediction = predict(collate([Sample.from_turn_index([-1, 0, -1, 1])]))
        >>> prediction.at.tolist(), prediction.placed(torch.tensor([0.5, 0.25])).tolist()
        ([0, 2], [[0.0, 0.5, 0.0, 0.25]])
        """
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)


def predict(batch: MicroBatch) -> Prediction:
    """The trained tokens of `batch`, row after row.

    >>> from milepost.learner.batch.pack import collate
    >>> from milepost.learner.batch.sample import Sample
    >>> predict(collate([Sample.from_turn_index([-1, -1, 0]), Sample.from_turn_index([-1, 0])])).at.tolist()
    [1, 3]
    """
    places = batch.loss_mask.flatten().nonzero().squeeze(1)
    if places.numel() == 0:
        places = places.new_ones(1)
    return Prediction(at=places - 1, targets=batch.input_ids.flatten()[places], mask=batch.loss_mask)
