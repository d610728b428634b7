"""The policy loss on one micro-batch: clipped, decoupled and off-policy corrected, in pure torch.

Three policies are kept apart: the rollout policy that sampled (as the engine reported it), the proximal policy at the
start of the update, around which ratios are clipped, and the current one that gets the gradient. A loss is a sum over
trained tokens divided by a denominator of the whole optimizer step, so it does not depend on how the step is cut into
ranks and micro-batches. Padding and prompt tokens never enter, not even as zeros times something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from milepost.learner import offpolicy
from milepost.learner.pack import MicroBatch
from milepost.learner.sample import Sample

Aggregation = Literal["token", "turn"]


class LossConfig(BaseModel):
    """Clipping, off-policy correction and how token losses add up."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    clip_low: float = Field(0.2, gt=0, lt=1, description="Ratios below 1 - clip_low get no gradient if A < 0")
    clip_high: float = Field(0.28, gt=0, description="Ratios above 1 + clip_high get no gradient if A > 0")
    dual_clip: float = Field(3.0, gt=1, description="Bound of ratio * |A| for A < 0, so that one token can't dominate")
    importance_cap: float = Field(2.0, ge=1, description="Upper bound of the weight pi_proximal / pi_rollout per token")
    ratio_band: tuple[float, float] | None = Field(
        None, description="Tokens with pi_proximal / pi_rollout outside (low, high) get weight 0; none: keep all"
    )
    kl_coef: float = Field(0.0, ge=0, description="Weight of KL(current || starting policy); 0 needs no second model")
    aggregation: Aggregation = Field(
        "token", description="token: every sampled token counts the same; turn: every turn does"
    )

    @model_validator(mode="after")
    def _band_is_an_interval_around_one(self) -> Self:
        if self.ratio_band is not None and not 0 <= self.ratio_band[0] < 1 < self.ratio_band[1]:
            raise ValueError(f"ratio_band {self.ratio_band} must be 0 <= low < 1 < high, for example (0.2, 5.0)")
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Policies:
    """Log-probs `[B, L]` of the same tokens under each policy; only `current` carries a gradient."""

    current: Tensor
    proximal: Tensor
    reference: Tensor | None = None
    """Of the frozen starting policy, where the KL term is on."""


@dataclass(frozen=True, slots=True, eq=False)
class LossTerms:
    """`loss` is a scalar with gradient, already divided; `sums` are plain numbers that add up over micro-batches."""

    loss: Tensor
    sums: dict[str, float]


def token_logprobs(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs of `targets` and entropies (no gradient), both `[B, K]` in nats, from `logits` `[B, K, V]`.

    Logits are taken in float32 and divided by the temperature, as the inference engine does for the log-probs it
    returns. `logits[:, k]` must be the prediction of `targets[:, k]`: the shift by one is the caller's.
    """
    scaled = logits.float() / temperature
    normaliser = scaled.logsumexp(-1)
    logprobs = scaled.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - normaliser
    with torch.no_grad():
        probabilities = (scaled - normaliser.unsqueeze(-1)).exp_()
        entropies = normaliser - probabilities.mul_(scaled).sum(-1)
    return logprobs, entropies


def surrogate(ratios: Tensor, advantages: Tensor, config: LossConfig) -> Tensor:
    """Elementwise clipped loss with separate bounds (clip-higher, DAPO) and, for negative advantages, dual clip.

    `max(-A r, -A clip(r, 1 - low, 1 + high))`, and at most `-A c` where A < 0.
    """
    clipped = ratios.clamp(1 - config.clip_low, 1 + config.clip_high)
    losses = torch.maximum(-advantages * ratios, -advantages * clipped)
    return torch.where(advantages < 0, torch.minimum(losses, -advantages * config.dual_clip), losses)


def denominator(samples: Sequence[Sample], aggregation: Aggregation) -> float:
    """Over all samples of an optimizer step: number of trained tokens, or of turns."""
    if aggregation == "token":
        return float(sum(sample.num_trained for sample in samples))
    return float(sum((1.0 / sample.turn_lengths[sample.loss_mask]).sum() for sample in samples))


def policy_loss(batch: MicroBatch, policies: Policies, *, config: LossConfig, total: float) -> LossTerms:
    """Decoupled clipped loss of one micro-batch.

    `w * surrogate(exp(current - proximal), A)` with `w = min(exp(proximal - rollout), cap)`, constant, plus
    `kl_coef * k3(reference - current)`; summed over trained tokens and divided by `total`, which is `denominator` of
    the whole step over all ranks. Tokens that the band masks still count in `total`.

    Source: decoupled PPO, AReaL (arXiv 2505.24298).
    """
    mask = batch.loss_mask
    current, proximal, rollout = policies.current[mask], policies.proximal[mask].detach(), batch.rollout_logprobs[mask]
    advantages = batch.advantages[mask]
    behind = offpolicy.log_ratio(proximal, rollout)
    correction = offpolicy.truncated_weights(behind, config.importance_cap)
    if config.ratio_band is not None:
        correction = correction * offpolicy.band_mask(behind, *config.ratio_band)
    ratios = offpolicy.log_ratio(current, proximal).exp()
    losses = correction * surrogate(ratios, advantages, config)
    sums = _clip_sums(ratios.detach(), advantages, config)
    if policies.reference is not None:
        divergence = offpolicy.k3(offpolicy.log_ratio(policies.reference[mask], current))
        losses = losses + config.kl_coef * divergence
        sums["reference_kl"] = float(divergence.detach().sum())
    if config.aggregation == "turn":
        losses = losses / batch.turn_lengths[mask]
    return LossTerms(losses.sum() / total, sums)


def _clip_sums(ratios: Tensor, advantages: Tensor, config: LossConfig) -> dict[str, float]:
    """Counts of tokens whose gradient a bound cut, and sums of the ratio and of KL(proximal || current)."""
    negative = advantages < 0
    dual = negative & (ratios > config.dual_clip)
    sums = {
        "clipped_low": negative & (ratios < 1 - config.clip_low),
        "clipped_high": (advantages > 0) & (ratios > 1 + config.clip_high),
        "clipped_dual": dual,
        "ratio": ratios,
        "approx_kl": offpolicy.k3(ratios.log()),
    }
    return {name: float(values.double().sum()) for name, values in sums.items()}
