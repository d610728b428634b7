"""What the learner's loop asks of a training backend, and what a step answers. Loads no framework but torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]

from milepost.learner.batch.pack import MicroBatch, Packing
from milepost.learner.loss.loss import LossTerms

LossFn = Callable[[int, MicroBatch, Tensor, Tensor], LossTerms]
"""Of the micro-batch's number, the micro-batch on the device, its log-probs and entropies `[B, L]`."""

ValueFn = Callable[[int, MicroBatch, Tensor], LossTerms]
"""Of the micro-batch's number, the micro-batch on the device and the critic's estimates `[B, L]`."""


@dataclass(frozen=True, slots=True)
class ProcessGroupMember:
    """A rank's place: who it is and the store at which the ranks meet (milepost.learner.zero.rendezvous)."""

    rank: int
    world_size: int
    store: Store


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one optimizer step did. `sums` are over all ranks and all trained tokens."""

    applied: bool
    """False: something was not finite, and weights and optimizer state are as before."""
    loss: float
    grad_norm: float
    lr: float
    sums: Mapping[str, float]


class TrainingBackend(Protocol):
    """Models split over ranks. Every method is collective: all ranks call it, in the same order."""

    rank: int
    world_size: int
    packing: Packing
    """How micro-batches are planned and collated that its methods are given."""

    def update(
        self,
        micro_batches: Sequence[MicroBatch],
        loss_fn: LossFn,
        *,
        temperature: float,
        approve: Callable[[Mapping[str, float]], None],
        value_fn: ValueFn | None = None,
        entropy_gradient: bool = False,
    ) -> StepMetrics:
        """One optimizer step. `approve` sees the summed numbers before it; what it raises cancels the step.

        `value_fn`, for a critic on the policy's trunk only, adds its loss to the policy's. Entropies carry a gradient
        only with `entropy_gradient`.
        """
        ...

    def scale_rate(self, factor: float) -> None:
        """Make the next step of `update` at `factor` of the scheduled learning rate."""
        ...

    def update_critic(self, micro_batches: Sequence[MicroBatch], value_fn: ValueFn) -> StepMetrics:
        """One optimizer step of a critic that has a trunk of its own."""
        ...

    def token_logprobs(self, micro_batches: Sequence[MicroBatch], *, temperature: float) -> list[Tensor]:
        """Log-probs `[B, L]` of each micro-batch's own tokens under the current weights, without gradient."""
        ...

    def token_statistics(
        self, micro_batches: Sequence[MicroBatch], *, temperature: float
    ) -> list[tuple[Tensor, Tensor]]:
        """The same with the entropies `[B, L]`."""
        ...

    def token_values(self, micro_batches: Sequence[MicroBatch]) -> list[Tensor]:
        """The critic's estimates `[B, L]` before each of the micro-batch's own tokens, without gradient."""
        ...

    def reference_logprobs(self, micro_batches: Sequence[MicroBatch], *, temperature: float) -> list[Tensor]:
        """Log-probs under the frozen starting policy."""
        ...

    def all_sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sum of every value over ranks; all ranks pass the same names."""
        ...

    def all_sum_array(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum over ranks, item by item; all ranks pass the same shape."""
        ...

    def all_equal(self, value: int) -> bool:
        """Whether all ranks passed the same `value`, below 2**53."""
        ...
