"""Entropy bonus in the loss, and an entropy band around what is usual for a turn.

The policy's mean entropy falls as it learns; in episodes of many turns it may also oscillate. A bonus holds it up, a
band with a penalty dampens what leaves the usual range. Nothing here promises that a policy does not collapse: watch
the spread of rewards inside groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from milepost.learner.batch.pack import MicroBatch
from milepost.learner.batch.sample import Sample
from milepost.learner.loss.loss import LossConfig, LossTerms, aggregate


class EntropyConfig(BaseModel):
    """Entropy bonus and band: whether the loss holds the policy's entropy up, and inside a range."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    coef: float = Field(
        0.0, ge=0, description="Entropy bonus coefficient of the mean entropy in the loss; 0: entropy is only measured"
    )
    band: tuple[float, float] | None = Field(
        None,
        description="Entropy band (EPO): tokens with entropy outside (low, high) times the usual of their turn "
        "are penalised",
    )
    penalty: float = Field(0.1, gt=0, description="Entropy penalty of one token outside the band, in nats")
    smoothing: float = Field(1.0, gt=0, description="Smoothing coefficient of the mean penalty beside the mean entropy")
    memory: float = Field(
        0.9,
        ge=0,
        lt=1,
        description="Exponential moving average decay of the usual entropy: share of the old value at each update",
    )

    @model_validator(mode="after")
    def _band_is_an_interval_around_one_and_counts(self) -> Self:
        if self.band is None:
            return self
        if not 0 <= self.band[0] < 1 < self.band[1]:
            raise ValueError(f"band {self.band} must be 0 <= low < 1 < high, for example (0.8, 1.2)")
        if self.coef == 0:
            raise ValueError("band has no effect with coef = 0, which weights the penalty too; set coef, e.g. to 1e-3")
        return self


def band_penalties(entropies: Tensor, usual: Tensor, *, band: tuple[float, float], penalty: float) -> Tensor:
    """Entropy penalties `[N]`: `penalty` where an entropy is outside `band` times its `usual` one, else 0; NaN gives 0.

    Source: EPO (arXiv 2509.22576). Ours: the published penalty is a constant, so its gradient is 0 and it only shifts
    the loss. Here the value is the published one and the gradient is that of `penalty` times the distance from the
    band in nats: it pushes back. Above the band it outweighs the bonus where `smoothing * penalty > 1`.

    >>> band_penalties(torch.tensor([0.5, 1.0, 1.5]), torch.ones(3), band=(0.8, 1.2), penalty=0.1)
    tensor([0.1000, 0.0000, 0.1000])
    """
    low, high = band[0] * usual, band[1] * usual
    distance = (low - entropies).clamp(min=0) + (entropies - high).clamp(min=0)
    outside = (entropies < low) | (entropies > high)
    return torch.where(outside, penalty * (1 + distance - distance.detach()), 0.0)


def entropy_loss(
    batch: MicroBatch, entropies: Tensor, usual: Tensor | None, *, config: EntropyConfig, loss: LossConfig, total: float
) -> LossTerms:
    """Entropy loss `-coef * aggregate(H - smoothing * penalty)` of one micro-batch, added up as the policy loss is.

    Args:
        entropies: `[B, L]` in nats, with gradient.
        usual: `[B, L]`, as `UsualEntropy.of` gives it; None gives the bonus alone.
        total: `denominator` of the whole step over all ranks.

    Ours: EPO's weights that change with the phase of training, and its start in the second half of an episode, are
    left out.

    >>> from milepost.learner.batch.pack import collate
    >>> batch, entropies = collate([Sample.from_turn_index([-1, 0, 0])]), torch.tensor([[9.0, 0.25, 0.75]])
    >>> terms = entropy_loss(batch, entropies, None, config=EntropyConfig(coef=0.5), loss=LossConfig(), total=2.0)
    >>> terms.loss.item()  # -0.5 times the mean entropy
    -0.25
    """
    kept = entropies[batch.loss_mask]
    sums = {}
    if config.band is not None and usual is not None:
        penalties = band_penalties(kept, usual[batch.loss_mask], band=config.band, penalty=config.penalty)
        sums["entropy_outside"] = float((penalties.detach() > 0).double().sum())
        kept = kept - config.smoothing * penalties
    return LossTerms(aggregate(-config.coef * kept, batch, loss, total=total), sums)


def turn_sums(batch: MicroBatch, entropies: Tensor, num_turns: int) -> dict[str, float]:
    """Sum of entropies and number of tokens by turn index, for indices below `num_turns`; they add up.

    >>> from milepost.learner.batch.pack import collate
    >>> turn_sums(collate([Sample.from_turn_index([-1, 0, 0])]), torch.tensor([[9.0, 0.25, 0.75]]), num_turns=1)
    {'turn_entropy_0': 1.0, 'turn_tokens_0': 2.0}
    """
    index = batch.turn_index[batch.loss_mask]
    found = torch.zeros(2, num_turns, dtype=torch.float64, device=index.device)
    found[0].index_add_(0, index, entropies.detach()[batch.loss_mask].double())
    found[1].index_add_(0, index, torch.ones_like(index, dtype=torch.float64))
    totals, counts = found.tolist()
    named = {f"turn_entropy_{k}": total for k, total in enumerate(totals)}
    return named | {f"turn_tokens_{k}": count for k, count in enumerate(counts)}


def num_turns(samples: Sequence[Sample]) -> int:
    """One more than the largest turn index among trained tokens.

    >>> num_turns([Sample.from_turn_index([-1, 0, -1, 1])])
    2
    """
    return 1 + max((int(sample.turn_index.max()) for sample in samples), default=-1)


class UsualEntropy:
    """Exponential moving average of the mean entropy per turn index; it begins anew when a run is resumed."""

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._mean: list[float | None] = []

    def of(self, turn_index: Tensor) -> Tensor:
        """The usual entropy of each token's turn, `[B, L]` in nats; NaN where none was seen or nothing is trained.

        >>> UsualEntropy(0.5).of(torch.tensor([[-1, 0]]))  # no update was seen
        tensor([[nan, nan]])
        """
        known = [float("nan") if mean is None else mean for mean in self._mean]
        width = max(int(turn_index.max()) + 1, len(known)) + 1
        # the last entry is what NO_TURN, -1, selects
        table = torch.tensor(known + [float("nan")] * (width - len(known)), device=turn_index.device)
        return table[turn_index]

    def learn(self, sums: Mapping[str, float]) -> None:
        """Move towards the means of one update, whose summed `turn_sums` are given; other names are ignored.

        >>> usual = UsualEntropy(0.5)
        >>> for entropy in (1.0, 0.5):
        ...     usual.learn({"turn_entropy_0": 2 * entropy, "turn_tokens_0": 2.0})
        >>> usual.of(torch.tensor([[0]])).item()  # 0.5 * 1.0 + 0.5 * 0.5
        0.75
        """
        k = 0
        while f"turn_tokens_{k}" in sums:
            if k == len(self._mean):
                self._mean.append(None)
            if count := sums[f"turn_tokens_{k}"]:
                fresh, old = sums[f"turn_entropy_{k}"] / count, self._mean[k]
                self._mean[k] = fresh if old is None else self._memory * old + (1 - self._memory) * fresh
            k += 1
