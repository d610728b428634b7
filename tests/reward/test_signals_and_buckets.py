"""Signals of the dashboard to the digits of their worked examples, and means of scores in buckets."""

from __future__ import annotations

import numpy as np
import pytest

from milepost.reward.evaluators.buckets import Scored, bucket, by_step
from milepost.reward.evaluators.episode import Call, Episode, Expected, Reference
from milepost.reward.evaluators.lexical import lexical_scores
from milepost.reward.evaluators.native import native_scores
from milepost.reward.evaluators.signals import Prices, Tokens, cost, nearest_rank, tokens_of
from milepost.reward.evaluators.wilson import wilson_interval
from tests.reward.episodes import walk

STEPS = [3, 4, 4, 5, 6, 7, 8, 9, 12, 50]
PRICES = Prices(prompt=0.5, cached=0.05, response=2.0)
REFERENCE = Reference(value={"A": 0.4, "B": 0.7}, choices={"A": {"x": 0.7, "y": 0.1}, "B": {"p": 0.9}}, shortest=2)


def scored(episode: Episode, expected: Expected = Expected()) -> Scored:  # noqa: B008  frozen
    return Scored(
        episode, REFERENCE, expected, native_scores(episode, REFERENCE, expected), lexical_scores(episode, expected)
    )


def test_the_99th_percentile_is_an_episode_that_was_played() -> None:
    assert nearest_rank(STEPS, 0.99) == 50
    assert round(float(np.percentile(STEPS, 99)), 2) == 46.58  # what interpolation makes of it
    assert (nearest_rank(STEPS, 0.5), nearest_rank(STEPS, 0.01), nearest_rank([7], 0.99)) == (6, 3, 7)


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1], 0.0), ([1], 1.1)])
def test_a_rank_that_is_none_is_refused(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="rank"):
        nearest_rank(values, share)


def test_cached_tokens_cost_what_a_cached_token_costs() -> None:
    assert cost(Tokens(prompt=12000, cached=9000, response=1500), PRICES) == pytest.approx(0.00495)
    assert cost(Tokens(prompt=12000, cached=0, response=1500), PRICES) == pytest.approx(0.009)


def test_a_bucket_by_hand() -> None:
    tokens = {"prompt_tokens": [10, 20], "cached_tokens": [0, 10], "response_tokens": [1, 2]}
    won, lost = walk("A x B p C success", **tokens), walk("A y A y A truncated", **tokens)
    assert tokens_of(won) == Tokens(prompt=30, cached=10, response=3)
    found = bucket([scored(won), scored(won), scored(lost)], PRICES)
    success = found.native["success"]
    assert (success.mean, success.low, success.high) == (pytest.approx(2 / 3), *wilson_interval(2, 3))
    assert found.native["tool_selection"].mean == pytest.approx(2 / 3)
    assert (found.native["safety"].mean, found.native["safety"].high) == (1.0, 1.0)
    assert found.truncated.mean == pytest.approx(1 / 3)
    assert (found.steps_p99, found.tokens.mean, found.tokens.low) == (2, 33, None)  # all equal: no interval
    assert found.tokens_per_success == pytest.approx(99 / 2)
    one = (20 * 0.5 + 10 * 0.05 + 3 * 2) / 1e6
    assert found.cost is not None
    assert (found.cost.mean, found.cost_per_success) == (pytest.approx(one), pytest.approx(3 * one / 2))


def test_a_bucket_without_success_or_prices_says_so() -> None:
    found = bucket([scored(walk("A y A failure"))], None)
    assert (found.tokens_per_success, found.cost, found.cost_per_success) == (None, None, None)
    with pytest.raises(ValueError, match="at least one episode"):
        bucket([], None)


def test_steps_by_their_index_by_hand() -> None:
    rule = walk("A x B p C success", violations=[(), ("no ticket",)])
    other = walk("A - A y A x B failure", calls=[(), (Call(name="wipe"),), ()])
    first, second, third = by_step([scored(rule), scored(other, Expected(forbidden=("wipe",)))])
    assert [each.episodes for each in (first, second, third)] == [2, 2, 1]
    assert (first.invalid, second.invalid) == (0.5, 0)
    assert (first.tool_selection, second.tool_selection, third.tool_selection) == (1, 0, 1)
    assert (first.violations, second.violations, third.violations) == (0, 1, 0)
    # after one step the first has reached B (0.7 - 0.4), the other nothing; after two the first has solved it
    assert (first.goal_progress, second.goal_progress) == (pytest.approx(0.15), pytest.approx(0.3))


def test_steps_of_long_episodes_meet_in_the_last_bucket() -> None:
    long = walk(" ".join(["A y"] * 40) + " A failure")
    found = by_step([scored(long)])
    assert (len(found), found[-1].step, found[-1].tool_selection) == (32, 31, 0)
