"""Importance sampling for tokens that another policy sampled than the one trained, and the proximal policy's log-probs.

Inference engine and learner never agree exactly, and a trajectory may be versions old, so the proximal log-prob is
never assumed to be the rollout's. Weights are functions of `log_ratio = proximal - rollout` per token and constant for
the gradient. They bound the error; they don't make arbitrarily old data usable. Weights are not normalised to a batch
mean of 1: that mean is known only after the last micro-batch's forward pass, when the first one's gradient is taken.
"""

from __future__ import annotations

from typing import Final, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from milepost.learner.batch.pack import MicroBatch
from milepost.learner.batch.segments import Level, segments

MAX_LOG_RATIO: Final = 20.0
"""Log-ratios are clamped to this magnitude before they are exponentiated."""


class OffPolicyConfig(BaseModel):
    """Importance sampling: how tokens of older policies and of another engine are weighted, and which are left out."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    proximal: Literal["recompute", "approximate"] = Field(
        "recompute",
        description="Proximal log-probs, at the start of an update with several minibatches: recompute costs a "
        "forward pass, approximate interpolates between rollout and current ones by policy version",
    )
    importance: Literal["token", "sequence", "none"] = Field(
        "token",
        description="Importance sampling weight pi_proximal / pi_rollout: of each token, of a whole row's "
        "product, or none",
    )
    importance_cap: float = Field(
        2.0, ge=1, description="Importance sampling truncation (TIS): upper bound of that weight"
    )
    ratio_band: tuple[float, float] | None = Field(
        None,
        description="Importance ratio mask (IcePop): tokens with pi_proximal / pi_rollout outside (low, high) get "
        "weight 0; none: keep all",
    )
    rejection_band: tuple[float, float] | None = Field(
        None,
        description="Rejection sampling range: turns or rows whose geometric mean ratio is outside (low, high) "
        "get weight 0; none: keep all",
    )
    rejection_level: Level = Field(
        "turn", description="Rejection sampling unit: rejection_band judges a turn, or a row of merged turns"
    )

    @model_validator(mode="after")
    def _bands_are_intervals_around_one(self) -> Self:
        for name, band in (("ratio_band", self.ratio_band), ("rejection_band", self.rejection_band)):
            if band is not None and not 0 <= band[0] < 1 < band[1]:
                raise ValueError(f"{name} {band} must be 0 <= low < 1 < high, for example (0.2, 5.0)")
        return self


def log_ratio(proximal: Tensor, rollout: Tensor) -> Tensor:
    """Log importance ratio `log(pi_proximal / pi_rollout)` per token in nats, clamped to +-20; shapes are equal.

    >>> log_ratio(torch.tensor([-1.0, -1.0]), torch.tensor([-1.5, -99.0]))
    tensor([ 0.5000, 20.0000])
    """
    return (proximal - rollout).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def truncated_weights(log_ratios: Tensor, cap: float) -> Tensor:
    """Truncated importance weights `min(exp(log_ratio), cap)` (TIS; decoupled PPO, AReaL, arXiv 2505.24298).

    >>> truncated_weights(torch.tensor([0.5, 1.0, 4.0]).log(), cap=2.0)
    tensor([0.5000, 1.0000, 2.0000])
    """
    return log_ratios.exp().clamp(max=cap)


def band_mask(log_ratios: Tensor, low: float, high: float) -> Tensor:
    """Importance ratio mask: true where `low <= exp(log_ratio) <= high`; what is outside gets weight 0 (IcePop).

    >>> band_mask(torch.tensor([0.1, 1.0, 8.0]).log(), low=0.2, high=5.0)
    tensor([False,  True, False])
    """
    ratios = log_ratios.exp()
    return (ratios >= low) & (ratios <= high)


def k3(log_ratios: Tensor) -> Tensor:
    """KL estimator k3 in nats per token, `exp(d) - 1 - d >= 0` with `d = log p - log q`, of KL(q || p) on samples of q.

    Source: Schulman (2020), Approximating KL Divergence.

    >>> k3(torch.tensor([0.0, 2.0]))  # e^2 - 3
    tensor([0.0000, 4.3891])
    """
    return log_ratios.exp() - 1 - log_ratios


def kept_tokens(log_ratios: Tensor, batch: MicroBatch, config: OffPolicyConfig) -> Tensor:
    """Rejection sampling mask `[N]`: true where no ratio, a token's or its turn's or row's mean, is outside its band.

    The geometric mean does not grow with length, a product would (geometric rejection sampling). Bands bound
    `pi_proximal / pi_rollout`; a library that bounds the inverse writes (0.5, 5) as (0.2, 2).

    >>> from milepost.learner.batch.pack import collate
    >>> from milepost.learner.batch.sample import Sample
    >>> batch, logs = collate([Sample.from_turn_index([-1, 0, 0, 1])]), torch.tensor([1.0, 4.0, 1.0]).log()
    >>> kept_tokens(logs, batch, OffPolicyConfig(rejection_band=(0.5, 1.5)))  # turn 0 has the geometric mean 2
    tensor([False, False,  True])
    """
    keep = torch.ones_like(log_ratios, dtype=torch.bool)
    if config.ratio_band is not None:
        keep = band_mask(log_ratios, *config.ratio_band)
    if config.rejection_band is not None:
        spans = segments(batch, config.rejection_level)
        keep = keep & band_mask(spans.mean(log_ratios), *config.rejection_band)[spans.index]
    return keep


def weights(log_ratios: Tensor, batch: MicroBatch, config: OffPolicyConfig) -> Tensor:
    """Importance sampling weight of each trained token's loss, `[N]` in [0, cap]; `log_ratios` `[N]` has no gradient.

    `importance = "sequence"` weights all tokens of a row by their product, which spreads with the row's length: it
    suits rows of one short turn.

    >>> from milepost.learner.batch.pack import collate
    >>> from milepost.learner.batch.sample import Sample
    >>> batch, logs = collate([Sample.from_turn_index([-1, 0, 0, 1])]), torch.tensor([0.5, 4.0, 9.0]).log()
    >>> weights(logs, batch, OffPolicyConfig(importance_cap=2.0, ratio_band=(0.2, 5.0)))
    tensor([0.5000, 2.0000, 0.0000])
    """
    if config.importance == "token":
        found = truncated_weights(log_ratios, config.importance_cap)
    elif config.importance == "sequence":
        rows = segments(batch, "sequence")
        products = rows.total(log_ratios).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        found = truncated_weights(products, config.importance_cap)[rows.index]
    else:
        found = torch.ones_like(log_ratios)
    return found * kept_tokens(log_ratios, batch, config)


def approximate_proximal(
    current: Tensor, rollout: Tensor, versions: Tensor, *, version: int, progress: float
) -> Tensor:
    """Proximal log-probs of policy `version` by interpolation, shaped as `current`, without gradient.

    `rollout + alpha (current - rollout)`, `alpha = (version - versions) / (version + progress - versions)`: the rollout
    policy is `version - versions` updates behind the proximal one, the current policy `progress` of an update ahead of
    it. On tokens of `version` itself this is `rollout`: what engine and learner disagree on there goes uncorrected.

    Source: the log-linear approximation of AReaL. Ours: `progress` is the share of the update's optimizer steps made so
    far, in [0, 1], because a version stands for a whole update; AReaL takes 1 in every step. At 0 the policies
    are the same and the result is `current`.

    >>> current, rollout, versions = torch.tensor([-1.0, -1.0]), torch.tensor([-2.0, -2.0]), torch.tensor([6, 7])
    >>> approximate_proximal(current, rollout, versions, version=7, progress=1.0)  # alpha = 1/2 and 0
    tensor([-1.5000, -2.0000])
    """
    if progress == 0:
        return current.detach()
    behind = (version - versions).clamp(min=0)
    return rollout + behind / (behind + progress) * (current.detach() - rollout)
