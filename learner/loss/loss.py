"""The policy loss on one micro-batch: ratio, objective, off-policy weights and aggregation put together, in pure torch.

Three policies are kept apart: the rollout policy that sampled (as the engine reported it), the proximal policy at the
start of the update, around which ratios are taken, and the current one that gets the gradient. A loss is a weighted sum
over trained tokens divided by a denominator of the whole optimizer step, so it does not depend on how the step is cut
into ranks and micro-batches. Padding and prompt tokens never enter, not even as zeros times something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from milepost.learner.batch.pack import MicroBatch
from milepost.learner.batch.sample import Sample
from milepost.learner.batch.segments import segments
from milepost.learner.loss import surrogate
from milepost.learner.loss.offpolicy import OffPolicyConfig, k3, log_ratio, weights

Aggregation = Literal["token", "turn", "sequence_token_sum", "sequence_token_mean", "sequence_token_sum_norm"]

WIDEST_GEOMETRIC = 0.05
"""A geometric mean of ratios moves by the mean of its tokens' changes; bounds wider than this never clip."""


class LossConfig(BaseModel):
    """Surrogate objective, clip ranges, aggregation and KL penalty: what a token's loss is, and how tokens add up."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    objective: Literal["clip", "cispo", "sapo"] = Field(
        "clip",
        description="Surrogate objective: clip, PPO's; cispo, a bounded weight, every token keeps its gradient; "
        "sapo, a soft gate",
    )
    ratio: Literal["token", "turn", "sequence"] = Field(
        "token",
        description="Importance ratio: of each token, or the geometric mean over its turn (StepPO) or row (GSPO, "
        "not for many turns)",
    )
    clip_low: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="PPO clip range below 1: ratios below 1 - clip_low are bounded; 3e-4 for turn ratios",
    )
    clip_high: float = Field(
        0.28,
        gt=0,
        description="PPO clip range above 1 (clip-higher): ratios above 1 + clip_high are bounded; 4e-4 for turn "
        "ratios",
    )
    dual_clip: float = Field(
        3.0, gt=1, description="Dual clip: bound of the ratio for A < 0, so that one token can't dominate"
    )
    tau_positive: float = Field(1.0, gt=0, description="SAPO temperature for A > 0: sharpness of the soft gate")
    tau_negative: float = Field(1.05, gt=0, description="SAPO temperature for A <= 0; larger closes the gate earlier")
    aggregation: Aggregation = Field(
        "token",
        description="Loss aggregation: what counts the same, every sampled token, every turn (token mean), or "
        "every row (token sum, token mean, or token sum over max_length)",
    )
    max_length: int = Field(
        0, ge=0, description="Loss normaliser of sequence_token_sum_norm (Dr. GRPO): the longest row, in tokens"
    )
    kl_coef: float = Field(
        0.0, ge=0, description="KL coefficient of KL(current || starting policy) in the loss; 0 needs no second model"
    )
    kl_estimator: surrogate.KLEstimator = Field(
        "k3", description="KL estimator from the sampled token: k1, k2 or k3 (Schulman)"
    )

    @model_validator(mode="after")
    def _bounds_belong_to_the_ratio(self) -> Self:
        widest = max(self.clip_low, self.clip_high)
        if self.ratio != "token" and self.objective != "sapo" and widest > WIDEST_GEOMETRIC:
            raise ValueError(
                f"clip_low = {self.clip_low} and clip_high = {self.clip_high} are for token ratios and never bound a "
                f"{self.ratio}'s geometric mean; with ratio = {self.ratio!r} set clip_low = 3e-4 and clip_high = 4e-4"
            )
        return self

    @model_validator(mode="after")
    def _a_norm_has_a_length(self) -> Self:
        if (self.aggregation == "sequence_token_sum_norm") != (self.max_length > 0):
            raise ValueError(
                f"max_length = {self.max_length} with aggregation = {self.aggregation!r}: sequence_token_sum_norm, and "
                "only it, divides by max_length; set both or neither"
            )
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


def token_logprobs(
    logits: Tensor, targets: Tensor, temperature: float, *, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probs of `targets` and entropies, both `[B, K]` in nats, from `logits` `[B, K, V]`.

    Logits are taken in float32 and divided by the temperature, as the inference engine does for the log-probs it
    returns. `logits[:, k]` must be the prediction of `targets[:, k]`: the shift by one is the caller's. Entropies carry
    a gradient only if asked to, which keeps two more tensors of the logits' size until the backward pass.

    >>> logprobs, entropies = token_logprobs(torch.zeros(1, 1, 4), torch.tensor([[2]]), temperature=1.0)
    >>> round(logprobs.item(), 4), round(entropies.item(), 4)  # -log 4 and log 4
    (-1.3863, 1.3863)
    """
    scaled = logits.float() / temperature
    normaliser = scaled.logsumexp(-1)
    logprobs = scaled.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - normaliser
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        probabilities = (scaled - normaliser.unsqueeze(-1)).exp_()
        weighted = probabilities * scaled if entropy_gradient else probabilities.mul_(scaled)
        entropies = normaliser - weighted.sum(-1)
    return logprobs, entropies


def denominator(samples: Sequence[Sample], config: LossConfig) -> float:
    """Loss denominator over all samples of a step: trained tokens, turns, or rows (times `max_length`), by aggregation.

    >>> sample = Sample.from_turn_index([-1, 0, 0, -1, 1])
    >>> [denominator([sample], LossConfig(aggregation=name)) for name in ("token", "turn", "sequence_token_mean")]
    [3.0, 2.0, 1.0]
    """
    match config.aggregation:
        case "token":
            return float(sum(sample.num_trained for sample in samples))
        case "turn":
            return float(sum((1.0 / sample.turn_lengths[sample.loss_mask]).sum() for sample in samples))
        case "sequence_token_sum" | "sequence_token_mean":
            return float(sum(sample.num_trained > 0 for sample in samples))
        case "sequence_token_sum_norm":
            return float(sum(sample.num_trained > 0 for sample in samples)) * config.max_length
        case never:
            assert_never(never)


def aggregate(losses: Tensor, batch: MicroBatch, config: LossConfig, *, total: float) -> Tensor:
    """Loss aggregation: this micro-batch's part of the step's loss, from `losses` `[N]` of its trained tokens.

    `total` is `denominator` of the whole step over all ranks. A row is a `Sample`: an episode whose context was
    rewritten counts once per row. Without a trained token the result is 0 and keeps the graph.

    Source: the names of verl; sequence_token_sum_norm is Dr.GRPO's (arXiv 2503.20783), turn is StepPO's
    (arXiv 2604.18401).

    >>> from milepost.learner.batch.pack import collate
    >>> batch, losses = collate([Sample.from_turn_index([-1, 0, 0, -1, 1])]), torch.tensor([1.0, 3.0, 6.0])
    >>> aggregate(losses, batch, LossConfig(aggregation="turn"), total=2.0).item()  # (2 + 6) / 2
    4.0
    """
    if config.aggregation == "turn":
        losses = losses / batch.turn_lengths[batch.loss_mask]
    elif config.aggregation == "sequence_token_mean":
        rows = segments(batch, "sequence")
        losses = losses / rows.count[rows.index]
    return losses.sum() / total


def turn_weights(num_tokens: Sequence[int], aggregation: Aggregation) -> NDArray[np.float64]:
    """How often the loss counts each of a trajectory's T turns, `[T]` > 0, up to a factor; its turns are one row.

    >>> turn_weights([1, 3], "token").tolist(), turn_weights([1, 3], "sequence_token_mean").tolist()
    ([1.0, 3.0], [0.25, 0.75])
    """
    tokens = np.array(num_tokens, dtype=np.float64)
    match aggregation:
        case "turn":
            return np.ones_like(tokens)
        case "sequence_token_mean":
            shares: NDArray[np.float64] = tokens / tokens.sum()
            return shares
        case "token" | "sequence_token_sum" | "sequence_token_sum_norm":
            return tokens
        case never:
            assert_never(never)


def policy_loss(
    batch: MicroBatch, policies: Policies, *, config: LossConfig, offpolicy: OffPolicyConfig, total: float
) -> LossTerms:
    """Policy loss of one micro-batch: `aggregate(w * objective(ratio, A) + kl_coef * KL)`.

    `ratio` is the importance ratio `exp(current - proximal)`, of the token or as a geometric mean; `w` is the constant
    importance sampling weight of `exp(proximal - rollout)` with its cap and bands. Tokens of weight 0 still count in
    `total`, and keep their KL term.

    Source: decoupled PPO, AReaL (arXiv 2505.24298).

    >>> from milepost.learner.batch.pack import collate
    >>> batch = collate([Sample.from_turn_index([-1, 0], advantages=[0.0, 1.0])])
    >>> policies = Policies(current=torch.tensor([[0.0, 1.5]]).log(), proximal=torch.zeros(1, 2))
    >>> terms = policy_loss(batch, policies, config=LossConfig(clip_high=0.25), offpolicy=OffPolicyConfig(), total=1.0)
    >>> terms.loss.item(), terms.sums["clipped_high"]  # a ratio of 1.5 is bounded by 1.25
    (-1.25, 1.0)
    """
    mask = batch.loss_mask
    current, proximal, advantages = policies.current[mask], policies.proximal[mask].detach(), batch.advantages[mask]
    ratios = _ratios(current, proximal, batch, config)
    correction = weights(log_ratio(proximal, batch.rollout_logprobs[mask]), batch, offpolicy)
    losses = correction * _objective(ratios, current, advantages, config)
    sums = _clip_sums(ratios.detach(), advantages, config)
    sums["approx_kl"] = float(k3(log_ratio(current.detach(), proximal)).double().sum())
    if policies.reference is not None:
        divergence = surrogate.kl_to_reference(current, policies.reference[mask], config.kl_estimator)
        losses = losses + config.kl_coef * divergence
        sums["reference_kl"] = float(divergence.detach().double().sum())
    return LossTerms(aggregate(losses, batch, config, total=total), sums)


def _ratios(current: Tensor, proximal: Tensor, batch: MicroBatch, config: LossConfig) -> Tensor:
    if config.ratio == "token":
        return surrogate.token_ratios(current, proximal)
    return surrogate.geometric_ratios(current, proximal, segments(batch, config.ratio))


def _objective(ratios: Tensor, current: Tensor, advantages: Tensor, config: LossConfig) -> Tensor:
    match config.objective:
        case "clip":
            return surrogate.clipped(
                ratios, advantages, low=config.clip_low, high=config.clip_high, dual=config.dual_clip
            )
        case "cispo":
            return surrogate.cispo(ratios, current, advantages, low=config.clip_low, high=config.clip_high)
        case "sapo":
            return surrogate.sapo(
                ratios, advantages, tau_positive=config.tau_positive, tau_negative=config.tau_negative
            )
        case never:
            assert_never(never)


def _clip_sums(ratios: Tensor, advantages: Tensor, config: LossConfig) -> dict[str, float]:
    """Sum of the ratio, and counts of tokens at a bound: for `clip` those without gradient, for `cispo` all."""
    cuts_low = (advantages < 0) | (config.objective == "cispo")
    cuts_high = (advantages > 0) | (config.objective == "cispo")
    bounded, dual = config.objective != "sapo", config.objective == "clip"
    sums = {
        "clipped_low": cuts_low & (ratios < 1 - config.clip_low) & bounded,
        "clipped_high": cuts_high & (ratios > 1 + config.clip_high) & bounded,
        "clipped_dual": (advantages < 0) & (ratios > config.dual_clip) & dual,
        "ratio": ratios,
    }
    return {name: float(values.double().sum()) for name, values in sums.items()}
