import pytest

from milepost.reward.cost import TokenPrices, TraceUsage, cost_summary, trace_cost

PRICES = TokenPrices(prompt=0.5, cached=0.05, completion=2.0)


def test_the_worked_trace_costs_half_a_cent() -> None:
    # 3,000 uncached at $.5, 9,000 cached at a tenth of it, 1,500 completed at $2 per million: 1500 + 450 + 3000.
    usage = TraceUsage(prompt_tokens=12_000, cached_tokens=9_000, completion_tokens=1_500)
    assert trace_cost(usage, PRICES) == pytest.approx(0.00495, rel=1e-12)


def test_judges_and_tools_are_added_in_dollars() -> None:
    usage = TraceUsage(prompt_tokens=0, cached_tokens=0, completion_tokens=1_000_000, other_usd=0.25)
    assert trace_cost(usage, PRICES) == pytest.approx(2.25)


def test_a_success_pays_for_the_failures_too() -> None:
    costs = [0.01] * 18 + [0.10, 0.72]
    found = cost_summary(costs, num_successes=5)
    assert (found.mean, found.median, found.p95) == pytest.approx((0.05, 0.01, 0.10))
    assert found.per_success == pytest.approx(0.20)


def test_without_a_success_a_success_has_no_price() -> None:
    assert cost_summary([0.01], num_successes=0).per_success is None


@pytest.mark.parametrize(("costs", "successes"), [([], 0), ([0.1], 2), ([0.1], -1)])
def test_impossible_counts_are_refused(costs: list[float], successes: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes of {len(costs)} episodes"):
        cost_summary(costs, num_successes=successes)


@pytest.mark.parametrize("wrong", [{"cached_tokens": 11}, {"cached_tokens": -1}, {"completion_tokens": -1}])
def test_impossible_usage_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        TraceUsage(**{"prompt_tokens": 10, "cached_tokens": 0, "completion_tokens": 0, **wrong})
