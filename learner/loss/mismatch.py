"""Training-inference mismatch: how far the policy that is trained is from the one that sampled.

Everything is a sum that adds up over micro-batches and ranks. Rates are made at the end, from the sums of a whole
update. Where the proximal log-probs are approximated, these are numbers of the approximation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from milepost.learner.batch.pack import MicroBatch
from milepost.learner.batch.segments import segments
from milepost.learner.loss.offpolicy import MAX_LOG_RATIO, OffPolicyConfig, k3, kept_tokens, log_ratio


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Sums over trained tokens and rows of the importance ratio rho = pi_proximal / pi_rollout; batches add up."""

    tokens: float
    ratio: float
    """Sum of rho."""
    ratio_squared: float
    k1: float
    """Sum of -log rho."""
    k3: float
    truncated: float
    """Tokens whose rho exceeds the cap."""
    high: float
    """Tokens with rho above the band; without a band, above the cap."""
    low: float
    """Tokens with rho below the band; without a band, below 1 / cap."""
    masked: float
    """Tokens that a band left out."""
    rows: float
    row_ratio_squared: float
    """Sum over rows of the squared product of rho."""
    rows_masked: float
    """Rows with at least one token left out."""
    trained: float
    """Sum of the proximal probabilities, and below with their squares, those of the rollout and the products."""
    trained_squared: float
    sampled: float
    sampled_squared: float
    both: float
    trained_nll: float
    """Sum of the negative log-probs of the proximal policy, and below of the rollout's."""
    sampled_nll: float

    @classmethod
    def of(cls, batch: MicroBatch, proximal: Tensor, config: OffPolicyConfig) -> Self:
        """Sums of one micro-batch; `proximal` `[B, L]` are log-probs of its tokens.

        >>> from milepost.learner.batch.pack import collate
        >>> from milepost.learner.batch.sample import Sample
        >>> batch = collate([Sample.from_turn_index([-1, 0, 0], rollout_logprobs=[0.0, math.log(0.5), math.log(0.5)])])
        >>> found = Mismatch.of(batch, torch.tensor([[0.0, 0.5, 0.25]]).log(), OffPolicyConfig())
        >>> found.tokens, round(found.ratio, 4)  # ratios 1 and 0.5
        (2.0, 1.5)
        """
        trained, sampled = proximal.detach()[batch.loss_mask].double(), batch.rollout_logprobs[batch.loss_mask].double()
        logs = log_ratio(trained, sampled)
        ratios, rows = logs.exp(), segments(batch, "sequence")
        products = rows.total(logs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        left_out = (~kept_tokens(logs, batch, config)).double()
        low, high = config.ratio_band or (1 / config.importance_cap, config.importance_cap)
        p, q = trained.exp(), sampled.exp()
        sums = {
            "tokens": torch.ones_like(ratios),
            "ratio": ratios,
            "ratio_squared": ratios.square(),
            "k1": -logs,
            "k3": k3(logs),
            "truncated": ratios > config.importance_cap,
            "high": ratios > high,
            "low": ratios < low,
            "masked": left_out,
            "rows": torch.ones_like(products),
            "row_ratio_squared": products.square(),
            "rows_masked": rows.total(left_out) > 0,
            "trained": p,
            "trained_squared": p.square(),
            "sampled": q,
            "sampled_squared": q.square(),
            "both": p * q,
            "trained_nll": -trained,
            "sampled_nll": -sampled,
        }
        added = torch.stack([values.double().sum() for values in sums.values()]).tolist()  # one wait for the device
        return cls(**dict(zip(sums, added, strict=True)))

    def metrics(self) -> dict[str, float]:
        """Named rates; `tokens` is positive. The correlation is left out where a policy's probabilities don't vary.

        `effective_sample_share` is `(sum rho)^2 / (n sum rho^2)` in (0, 1]. `mismatch_k1` and `mismatch_k3` estimate
        KL(rollout || proximal) in nats per token. The chi-squares are `mean(rho^2) - 1` over tokens and, with the
        product of rho, over rows. `perplexity_difference` is the proximal policy's perplexity less the rollout's.

        >>> from milepost.learner.batch.pack import collate
        >>> from milepost.learner.batch.sample import Sample
        >>> batch = collate([Sample.from_turn_index([-1, 0, 0], rollout_logprobs=[0.0, math.log(0.5), math.log(0.5)])])
        >>> found = Mismatch.of(batch, torch.tensor([[0.0, 0.5, 0.25]]).log(), OffPolicyConfig()).metrics()
        >>> round(found["effective_sample_share"], 4)  # 1.5^2 / (2 * 1.25)
        0.9
        """
        n = self.tokens
        found = {
            "effective_sample_share": self.ratio**2 / (n * self.ratio_squared),
            "mismatch_k1": self.k1 / n,
            "mismatch_k3": self.k3 / n,
            "mismatch_chi2": self.ratio_squared / n - 1,
            "mismatch_chi2_sequence": self.row_ratio_squared / self.rows - 1,
            "truncated_share": self.truncated / n,
            "ratio_high_share": self.high / n,
            "ratio_low_share": self.low / n,
            "masked_share": self.masked / n,
            "masked_share_sequence": self.rows_masked / self.rows,
            "perplexity_difference": _perplexity(self.trained_nll / n) - _perplexity(self.sampled_nll / n),
        }
        correlation = self._correlation()
        return found if correlation is None else found | {"probability_correlation": correlation}

    def _correlation(self) -> float | None:
        """Pearson's, of the two policies' probabilities of the same tokens."""
        n = self.tokens
        trained = self.trained_squared / n - (self.trained / n) ** 2
        sampled = self.sampled_squared / n - (self.sampled / n) ** 2
        if min(trained, sampled) < 1e-12:  # rounding of the squares
            return None
        covariance = self.both / n - self.trained * self.sampled / n**2
        return max(-1.0, min(1.0, covariance / math.sqrt(trained * sampled)))


def _perplexity(nll: float) -> float:
    return math.exp(min(nll, 700.0))  # more is beyond a float
