"""Ratios and what they make of an advantage, token by token: the clipped surrogate and its relatives, in pure torch.

Everything is elementwise over trained tokens `[N]`, but for the ratio of a turn, which all of its tokens share. Nothing
here adds up or divides: `milepost.learner.loss.loss` does. Losses are minimised: a positive advantage gives a
negative one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from milepost.learner.batch.segments import Segments
from milepost.learner.loss.offpolicy import k3, log_ratio

KLEstimator = Literal["k1", "k2", "k3"]


def token_ratios(current: Tensor, proximal: Tensor) -> Tensor:
    """`exp(current - proximal)` per token, `[N]`; the gradient goes through `current`."""
    return log_ratio(current, proximal).exp()


def geometric_ratios(current: Tensor, proximal: Tensor, segments: Segments) -> Tensor:
    """The geometric mean of the token ratios of a segment, at each of its tokens, `[N]`.

    `s_j = sg(s) * exp(current_j - sg(current_j))` with `s = exp(mean_j(current_j - proximal_j))` and sg the stop of the
    gradient. The value is s at every token. If a segment's tokens have one advantage and are averaged, the gradient is
    that of s; with advantages per token each token's gradient goes with its own.

    Source: the token form of GSPO (arXiv 2507.18071). With turns as segments it is the step ratio of StepPO
    (arXiv 2604.18401).
    """
    shared = segments.mean(log_ratio(current.detach(), proximal)).exp()
    return shared[segments.index] * (current - current.detach()).exp()


def clipped(ratios: Tensor, advantages: Tensor, *, low: float, high: float, dual: float) -> Tensor:
    """`max(-A r, -A clip(r, 1 - low, 1 + high))`, and at most `-A dual` where A < 0.

    Separate bounds are DAPO's clip-higher, as used by StarPO-S (arXiv 2504.20073).
    """
    bounded = ratios.clamp(1 - low, 1 + high)
    losses = torch.maximum(-advantages * ratios, -advantages * bounded)
    return torch.where(advantages < 0, torch.minimum(losses, -advantages * dual), losses)


def cispo(ratios: Tensor, logprobs: Tensor, advantages: Tensor, *, low: float, high: float) -> Tensor:
    """`-sg(clip(r, 1 - low, 1 + high)) A logp`: the ratio is a bounded weight, so no token loses its gradient.

    Source: CISPO (arXiv 2506.13585).
    """
    return -ratios.detach().clamp(1 - low, 1 + high) * advantages * logprobs


def sapo(ratios: Tensor, advantages: Tensor, *, tau_positive: float, tau_negative: float) -> Tensor:
    """`-(4 / tau) sigmoid(tau (r - 1)) A`: a gate that closes softly; its slope at r = 1 is 1 for every tau.

    `tau` is `tau_positive` where A > 0, else `tau_negative`. Source: SAPO (arXiv 2511.20347).
    """
    tau = torch.where(advantages > 0, tau_positive, tau_negative)
    return -(4 / tau) * torch.sigmoid(tau * (ratios - 1)) * advantages


def kl_to_reference(current: Tensor, reference: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimate of KL(current || reference) per token, `[N]` in nats, with the gradient of the estimate.

    With d = current - reference: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d (Schulman). Ours for k1: its value is d but
    its gradient is k2's. The gradient of d itself has mean zero over samples of the current policy, so as a loss it
    would only add noise, while k2's is that of the KL (arXiv 2506.09477).
    """
    difference = log_ratio(current, reference)
    if estimator == "k3":
        return k3(-difference)
    squared = 0.5 * difference.square()
    return squared if estimator == "k2" else squared + (difference - squared).detach()
