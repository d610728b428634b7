"""The critic: its settings, the value loss on one micro-batch, and the explained variance that shows whether it learns.

A critic exists exactly where the credit strategy reads one. Targets come from the strategy and are constants. The
critic trains on the samples the policy trains on: groups that the filter dropped teach it nothing, so where all
rollouts of a task agree and the filter drops them, its estimate for that task stays what generalisation makes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from milepost.learner.batch.pack import MicroBatch
from milepost.learner.batch.sample import Sample
from milepost.learner.loss.loss import LossTerms

ROUNDING = 1e-9
"""Targets whose variance is below this share of their mean square differ by rounding only."""


class CriticConfig(BaseModel):
    """The critic, which exists exactly where the credit strategy reads one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    trunk: Literal["own", "shared"] = Field(
        "own",
        description="Critic architecture: own, a second model that starts as the policy; shared, a value head on "
        "the policy's trunk",
    )
    lr: float = Field(1e-5, gt=0, description="Learning rate of an own trunk after warm-up; schedule as the policy's")
    minibatches: int = Field(
        4,
        ge=1,
        description="Minibatches of an own trunk per epoch, one optimizer step each; it starts from nothing, the "
        "policy doesn't",
    )
    epochs: int = Field(1, ge=1, description="Epochs of an own trunk: passes over the samples of an update")
    value_coef: float = Field(
        0.1, gt=0, description="Value loss coefficient beside the policy's loss, for a shared trunk"
    )
    value_clip: float | None = Field(
        None,
        gt=0,
        description="Value clipping (PPO): largest useful move of an estimate within one update, in units of the "
        "return; none: no bound",
    )
    warmup_updates: int = Field(
        0,
        ge=0,
        description="Critic warm-up: first updates of a run in which only the critic learns; needs a trunk of its own",
    )

    @property
    def steps(self) -> int:
        """Optimizer steps of an own trunk per update."""
        return self.minibatches * self.epochs

    @model_validator(mode="after")
    def _warmup_leaves_the_policy_alone(self) -> Self:
        if self.trunk == "shared" and self.warmup_updates:
            raise ValueError(
                'warmup_updates needs trunk = "own": on a shared trunk the critic\'s steps would change the policy too'
            )
        if self.trunk == "shared" and self.epochs > 1:
            raise ValueError('epochs above 1 needs trunk = "own": a shared trunk learns with the policy\'s own steps')
        return self


def count_targets(samples: Sequence[Sample]) -> int:
    """Number of value targets over all samples of an optimizer step.

    >>> count_targets([Sample.from_turn_index([-1, 0, 0], value_targets=[None, 1.0, None])])
    1
    """
    return sum(int(sample.value_mask.sum()) for sample in samples)


def value_loss(batch: MicroBatch, values: Tensor, old: Tensor, *, clip: float | None, total: float) -> LossTerms:
    """Value loss: half the squared error of the estimates that have a target, summed and divided by `total`.

    Value clipping: with `clip` c an estimate gains nothing by moving further than c from where the update found it:
    `0.5 max((V - R)^2, (V_old + clamp(V - V_old, -c, c) - R)^2)`, as in the reference code of PPO (arXiv 1707.06347).

    Args:
        values: `[B, L]` estimates before each token, with gradient.
        old: `[B, L]` the same before the update.
        total: number of targets of the whole optimizer step, over all ranks.

    >>> from milepost.learner.batch.pack import collate
    >>> batch = collate([Sample.from_turn_index([-1, 0], value_targets=[None, 1.0])])
    >>> values, old = torch.tensor([[0.0, 0.75]]), torch.zeros(1, 2)
    >>> value_loss(batch, values, old, clip=None, total=1.0).loss.item()  # 0.25^2 / 2
    0.03125
    >>> value_loss(batch, values, old, clip=0.5, total=1.0).loss.item()  # 0.5^2 / 2: it moved by more than 0.5
    0.125
    """
    mask = batch.value_mask
    current, targets = values[mask], batch.value_targets[mask]
    errors = (current - targets).square()
    if clip is not None:
        near = old[mask] + (current - old[mask]).clamp(-clip, clip)
        errors = torch.maximum(errors, (near - targets).square())
    halves = 0.5 * errors
    known, missed = targets.double(), (targets - current.detach()).double()
    sums = {
        "value_count": float(known.numel()),
        "value_loss": float(halves.detach().double().sum()),
        "value_target": float(known.sum()),
        "value_target_square": float(known.square().sum()),
        "value_miss": float(missed.sum()),
        "value_miss_square": float(missed.square().sum()),
    }
    return LossTerms(halves.sum() / total, sums)


def critic_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Mean value loss and explained variance `1 - Var(target - estimate) / Var(target)`, estimates as before each step.

    Empty where nothing had a target; no explained variance where the targets don't vary.

    >>> sums = {"value_count": 2.0, "value_loss": 0.5, "value_target": 2.0, "value_target_square": 4.0}  # 0 and 2
    >>> critic_metrics(sums | {"value_miss": 0.0, "value_miss_square": 1.0})  # 1 - 0.5 / 1
    {'value_loss': 0.25, 'explained_variance': 0.5}
    """
    count = sums.get("value_count", 0.0)
    if not count:
        return {}
    metrics = {"value_loss": sums["value_loss"] / count}
    square = sums["value_target_square"] / count
    spread = square - (sums["value_target"] / count) ** 2
    if spread > ROUNDING * square:
        missed = sums["value_miss_square"] / count - (sums["value_miss"] / count) ** 2
        metrics["explained_variance"] = 1.0 - missed / spread
    return metrics
