"""How far the policy that is trained is from the one that sampled: weights to correct it and numbers to watch.

Inference engine and learner never agree exactly, and a trajectory may be versions old, so the proximal log-prob is
never assumed to be the rollout's. Everything here works on `log_ratio = proximal - rollout` per token and is constant
for the gradient. The corrections bound the weights; they don't make arbitrarily old data usable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this magnitude before they are exponentiated."""


def log_ratio(proximal: Tensor, rollout: Tensor) -> Tensor:
    """`log(pi_proximal / pi_rollout)` per token, clamped to +-20; shapes are equal."""
    return (proximal - rollout).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def truncated_weights(log_ratios: Tensor, cap: float) -> Tensor:
    """Token-level truncated importance weights `min(exp(log_ratio), cap)` (token TIS; AReaL, arXiv 2505.24298)."""
    return log_ratios.exp().clamp(max=cap)


def band_mask(log_ratios: Tensor, low: float, high: float) -> Tensor:
    """True where `low <= exp(log_ratio) <= high`; tokens outside get weight 0 (IcePop)."""
    ratios = log_ratios.exp()
    return (ratios >= low) & (ratios <= high)


def k3(log_ratios: Tensor) -> Tensor:
    """Per-token estimate `exp(d) - 1 - d >= 0` of KL(q || p), `d = log p - log q`, from samples of q (Schulman)."""
    return log_ratios.exp() - 1 - log_ratios


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Sums over trained tokens from which the mismatch metrics follow; sums of several batches add up."""

    tokens: float
    ratio: float
    """Sum of `rho = exp(log_ratio)`."""
    ratio_squared: float
    k3: float
    truncated: float
    """Number of tokens whose ratio exceeds the cap."""
    masked: float
    """Number of tokens outside the band."""

    @classmethod
    def of(cls, log_ratios: Tensor, *, cap: float, band: tuple[float, float] | None) -> Self:
        """Sums over the given tokens, `[N]`."""
        ratios = log_ratios.double().exp()
        outside = torch.zeros_like(ratios) if band is None else ~band_mask(log_ratios, *band)
        return cls(
            tokens=float(ratios.numel()),
            ratio=float(ratios.sum()),
            ratio_squared=float(ratios.square().sum()),
            k3=float(k3(log_ratios.double()).sum()),
            truncated=float((ratios > cap).sum()),
            masked=float(outside.sum()),
        )

    @property
    def effective_sample_share(self) -> float:
        """`(sum rho)^2 / (n sum rho^2)` in (0, 1]; 1 where all ratios are equal."""
        return self.ratio**2 / (self.tokens * self.ratio_squared)

    @property
    def chi2(self) -> float:
        """`mean(rho^2) - 1`: chi-square divergence of proximal from rollout policy."""
        return self.ratio_squared / self.tokens - 1

    @property
    def mean_k3(self) -> float:
        """Mean k3: KL(rollout || proximal) per token, in nats."""
        return self.k3 / self.tokens

    @property
    def truncated_share(self) -> float:
        """Share of tokens whose weight the cap cut."""
        return self.truncated / self.tokens

    @property
    def masked_share(self) -> float:
        """Share of tokens that the band set to weight 0."""
        return self.masked / self.tokens
