"""What an episode cost in money: tokens at a provider's prices, and what a success costs over many episodes.

Inputs are token counts of an engine's usage report and prices of the user's own; the house trains on its own engines
and has no price list, so nothing here is called by it. For dashboards and for comparing policies at equal success.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

from milepost.reward.evaluators import nearest_rank


class TokenPrices(msgspec.Struct, frozen=True, kw_only=True):
    """Prices in US dollars per million tokens."""

    prompt: float
    """Of a prompt token that was not in the provider's prefix cache."""
    cached: float
    completion: float


class TraceUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What one episode consumed. Raises ValueError unless 0 <= cached <= prompt and nothing is negative."""

    prompt_tokens: int
    """All of them, over all turns, the cached ones too."""
    cached_tokens: int
    completion_tokens: int
    other_usd: float = 0.0
    """Judges and tools, in US dollars."""

    def __post_init__(self) -> None:
        if not 0 <= self.cached_tokens <= self.prompt_tokens or self.completion_tokens < 0 or self.other_usd < 0:
            raise ValueError(
                f"a trace of {self.prompt_tokens} prompt tokens, {self.cached_tokens} of them cached, "
                f"{self.completion_tokens} completion tokens and {self.other_usd} other dollars cannot be"
            )


class CostSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Cost of a set of episodes in US dollars."""

    mean: float
    median: float
    p95: float
    """Nearest rank."""
    per_success: float | None
    """What all of them cost, failures too, over the number of successes; None without a success."""


def trace_cost(usage: TraceUsage, prices: TokenPrices) -> float:
    """US dollars of one episode: uncached prompt, cached prompt and completion tokens at their prices, and the rest."""
    uncached = usage.prompt_tokens - usage.cached_tokens
    tokens = (
        uncached * prices.prompt + usage.cached_tokens * prices.cached + usage.completion_tokens * prices.completion
    )
    return tokens / 1e6 + usage.other_usd


def cost_summary(costs: Sequence[float], *, num_successes: int) -> CostSummary:
    """The summary of `costs` in US dollars, one per episode.

    Raises ValueError for no episodes, or unless 0 <= num_successes <= len(costs).
    """
    if not costs or not 0 <= num_successes <= len(costs):
        raise ValueError(f"{num_successes} successes of {len(costs)} episodes: pass the cost of every episode")
    total = math.fsum(costs)
    return CostSummary(
        mean=total / len(costs),
        median=statistics.median(costs),
        p95=nearest_rank(costs, 0.95),
        per_success=total / num_successes if num_successes else None,
    )
