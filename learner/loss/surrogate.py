"""Importance ratios and surrogate objectives, token by token: PPO's clipped one and its relatives, in pure torch.

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
    """Importance ratios `exp(current - proximal)` per token, `[N]`; the gradient goes through `current`.

    >>> token_ratios(torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.25]).log())
    tensor([2., 1.])
    """
    return log_ratio(current, proximal).exp()


def geometric_ratios(current: Tensor, proximal: Tensor, segments: Segments) -> Tensor:
    """Geometric importance ratios: the mean of the token ratios of a segment, at each of its tokens, `[N]`.

    `s_j = sg(s) * exp(current_j - sg(current_j))` with `s = exp(mean_j(current_j - proximal_j))` and sg the stop of the
    gradient. The value is s at every token. If a segment's tokens have one advantage and are averaged, the gradient is
    that of s; with advantages per token each token's gradient goes with its own.

    Source: the token form of GSPO (arXiv 2507.18071). With turns as segments it is the step ratio of StepPO
    (arXiv 2604.18401).

    >>> turns = Segments(index=torch.tensor([0, 0, 1]), count=torch.tensor([2, 1]))
    >>> geometric_ratios(torch.tensor([1.0, 4.0, 3.0]).log(), torch.zeros(3), turns)
    tensor([2., 2., 3.])
    """
    shared = segments.mean(log_ratio(current.detach(), proximal)).exp()
    return shared[segments.index] * (current - current.detach()).exp()


def clipped(ratios: Tensor, advantages: Tensor, *, low: float, high: float, dual: float) -> Tensor:
    """PPO clip `max(-A r, -A clip(r, 1 - low, 1 + high))` with dual clip: at most `-A dual` where A < 0.

    Separate bounds are DAPO's clip-higher, as used by StarPO-S (arXiv 2504.20073).

    >>> ratios, advantages = torch.tensor([1.5, 1.5, 5.0]), torch.tensor([1.0, -1.0, -1.0])
    >>> clipped(ratios, advantages, low=0.2, high=0.25, dual=3.0)  # bounded by 1.25; not bounded; dual clip
    tensor([-1.2500,  1.5000,  3.0000])
    """
    bounded = ratios.clamp(1 - low, 1 + high)
    losses = torch.maximum(-advantages * ratios, -advantages * bounded)
    return torch.where(advantages < 0, torch.minimum(losses, -advantages * dual), losses)


def cispo(ratios: Tensor, logprobs: Tensor, advantages: Tensor, *, low: float, high: float) -> Tensor:
    """CISPO `-sg(clip(r, 1 - low, 1 + high)) A logp`: the ratio is a bounded weight, so no token loses its gradient.

    Source: arXiv 2506.13585.

    >>> cispo(torch.tensor([1.5]), torch.tensor([-2.0]), torch.tensor([1.0]), low=0.2, high=0.25)  # -1.25 * 1 * -2
    tensor([2.5000])
    """
    return -ratios.detach().clamp(1 - low, 1 + high) * advantages * logprobs


def sapo(ratios: Tensor, advantages: Tensor, *, tau_positive: float, tau_negative: float) -> Tensor:
    """SAPO `-(4 / tau) sigmoid(tau (r - 1)) A`: a gate that closes softly; its slope at r = 1 is 1 for every tau.

    `tau` is `tau_positive` where A > 0, else `tau_negative`. Source: arXiv 2511.20347.

    >>> sapo(torch.ones(2), torch.tensor([1.0, -1.0]), tau_positive=1.0, tau_negative=2.0)  # -(4 / tau) * 0.5 * A
    tensor([-2.,  1.])
    """
    tau = torch.where(advantages > 0, tau_positive, tau_negative)
    return -(4 / tau) * torch.sigmoid(tau * (ratios - 1)) * advantages


def kl_to_reference(current: Tensor, reference: Tensor, estimator: KLEstimator) -> Tensor:
    """KL penalty: estimate of KL(current || reference) per token, `[N]` in nats, with the gradient of the estimate.

    With d = current - reference: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d (Schulman). Ours for k1: its value is d but
    its gradient is k2's. The gradient of d itself has mean zero over samples of the current policy, so as a loss it
    would only add noise, while k2's is that of the KL (arXiv 2506.09477).

    >>> current, reference = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()  # d = log 2
    >>> [round(kl_to_reference(current, reference, name).item(), 4) for name in ("k1", "k2", "k3")]
    [0.6931, 0.2402, 0.1931]
    """
    difference = log_ratio(current, reference)
    if estimator == "k3":
        return k3(-difference)
    squared = 0.5 * difference.square()
    return squared if estimator == "k2" else squared + (difference - squared).detach()
