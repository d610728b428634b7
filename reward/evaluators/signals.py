"""Signals of a dashboard over many episodes: steps at the far end, and what their tokens cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from milepost.reward.evaluators.episode import Episode

Number = TypeVar("Number", int, float)


class Prices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of a million tokens, in any currency."""

    prompt: float
    cached: float
    """Of prompt tokens that a prefix cache had."""
    response: float


class Tokens(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one episode."""

    prompt: int
    """Of all its prompts, those a prefix cache can have included."""
    cached: int
    """Of these, what the turn before had already."""
    response: int


def nearest_rank(values: Sequence[Number], share: float) -> Number:
    """The value at rank ceil(share * n) of n sorted ones: one that was seen, where interpolation would invent one.

    Raises ValueError without values, or unless 0 < share <= 1.

    >>> nearest_rank([3, 4, 4, 5, 6, 7, 8, 9, 12, 50], 0.99)
    50
    """
    if not values or not 0 < share <= 1:
        raise ValueError(f"the rank of {share} among {len(values)} values: it needs a share in (0, 1], and a value")
    return sorted(values)[math.ceil(share * len(values)) - 1]


def tokens_of(episode: Episode) -> Tokens:
    """What its prompts and responses add up to."""
    return Tokens(
        prompt=sum(step.prompt_tokens for step in episode.steps),
        cached=sum(step.cached_tokens for step in episode.steps),
        response=sum(step.response_tokens for step in episode.steps),
    )


def cost(tokens: Tokens, prices: Prices) -> float:
    """What the tokens of an episode cost: (fresh * price + cached * price + responses * price) / 1e6.

    >>> prices = Prices(prompt=0.5, cached=0.05, response=2.0)
    >>> round(cost(Tokens(prompt=12000, cached=9000, response=1500), prices), 5)
    0.00495
    """
    fresh = tokens.prompt - tokens.cached
    return (fresh * prices.prompt + tokens.cached * prices.cached + tokens.response * prices.response) / 1e6
