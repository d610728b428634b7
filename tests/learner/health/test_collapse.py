"""The collapse watch on scripted runs: healthy, solved, collapsing, and restarted or rolled back in the middle."""

from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from milepost.learner.credit.filter import FilterConfig
from milepost.learner.health.collapse import (
    CollapseConfig,
    CollapseWatch,
    Finding,
    HealthMetrics,
    Validation,
    findings,
    tightened,
)

BEGIN = 10
"""Iterations from which the default config takes what is normal."""


def health(iteration: int, **changes: Any) -> HealthMetrics:
    values: dict[str, Any] = {
        "spread": 0.4,
        "success": 0.3,
        "entropy": 1.0,
        "grad_norm": 0.5,
        "groups_kept": 6,
        "repetition": 0.2,
        "information": 0.8,
    }
    return HealthMetrics(iteration=iteration, **(values | changes))


def run(later: Sequence[dict[str, Any]], **config: Any) -> list[Finding]:
    """What holds after ten normal iterations and then `later`."""
    history = [health(k + 1) for k in range(BEGIN)]
    history += [health(BEGIN + 1 + k, **changes) for k, changes in enumerate(later)]
    return findings(history, [], CollapseConfig(**config))


def signals(found: Sequence[Finding]) -> list[str]:
    return [finding.signal for finding in found]


def test_a_healthy_run_finds_nothing() -> None:
    assert (
        run([{"success": 0.3 + 0.01 * k, "entropy": 1.0 - 0.01 * k, "spread": 0.4 - 0.002 * k} for k in range(50)])
        == []
    )


def test_a_solved_environment_is_no_collapse() -> None:
    solved = {
        "success": 0.98,
        "spread": 0.0,
        "entropy": 0.01,
        "repetition": 0.95,
        "information": 0.05,
        "groups_kept": 0,
    }
    assert run([solved] * 30) == []


@pytest.mark.parametrize(
    ("signal", "change", "just_not"),
    [
        ("spread", {"spread": 0.099}, {"spread": 0.101}),  # a quarter of .4
        ("information", {"information": 0.19}, {"information": 0.21}),  # a quarter of .8
        ("entropy", {"entropy": 0.09}, {"entropy": 0.11}),  # a tenth of 1
        ("repetition", {"repetition": 0.61}, {"repetition": 0.59}),  # half the way from .2 to 1
    ],
)
def test_a_sign_is_found_after_five_measurements_in_a_row_beyond_its_limit(
    signal: str, change: dict[str, float], just_not: dict[str, float]
) -> None:
    assert run([change] * 4) == []
    (found,) = run([change] * 5)
    assert (found.signal, found.is_stop) == (signal, False)
    assert "since iteration 11" in found.text
    assert run([just_not] * 30) == []
    assert run([change] * 4 + [just_not] + [change] * 4) == []


def test_a_finding_says_how_much_how_it_was_at_first_and_since_when() -> None:
    (found,) = run([{}, {}] + [{"spread": 0.05}] * 6)
    assert found.text == (
        "first sign of collapse: standard deviation of returns inside a group 0.05 now, 0.4 at first, "
        "below 25% of it since iteration 13"
    )
    (found,) = run([{"repetition": 0.9}] * 5)
    assert "90% of their n-grams, 20% at first; above 60% since iteration 11" in found.text


def test_signs_come_in_the_order_in_which_collapse_shows_them() -> None:
    worst = {"spread": 0.001, "repetition": 0.99, "information": 0.0, "entropy": 0.01, "groups_kept": 0}
    found = run([worst] * 10 + [worst | {"grad_norm": 50.0}])
    assert signals(found) == ["spread", "repetition", "information", "entropy", "gradient", "no_spread", "no_step"]
    assert [finding.is_stop for finding in found] == [False] * 5 + [True] * 2


def test_a_gradient_norm_ten_times_the_median_before_is_a_spike_at_once_and_only_then() -> None:
    (found,) = run([{"grad_norm": 5.1}])
    assert found.signal == "gradient"
    assert "norm 5.1 in iteration 11, median 0.5 in the 10 before" in found.text
    assert run([{"grad_norm": 4.9}]) == []
    assert run([{"grad_norm": 5.1}, {}]) == []
    assert run([{"grad_norm": 5.1}, {"grad_norm": None}]) == []


def test_a_policy_that_repeats_from_the_start_is_not_warned_of() -> None:
    history = [health(k + 1, repetition=0.95) for k in range(BEGIN)]
    history += [health(BEGIN + 1 + k, repetition=1.0) for k in range(20)]
    assert findings(history, [], CollapseConfig()) == []


def test_signals_that_were_not_measured_find_nothing_and_sparse_ones_count_their_measurements() -> None:
    nothing = {"spread": None, "success": None, "entropy": None, "repetition": None, "information": None}
    assert run([nothing] * 30) == []
    # mutual information every other iteration: ten normal measurements, then five low ones
    history = [health(k, information=(0.8 if k <= 20 else 0.1) if k % 2 == 0 else None) for k in range(1, 31)]
    (found,) = findings(history, [], CollapseConfig())
    assert found.signal == "information"
    assert "since iteration 22" in found.text
    assert findings(history[:-2], [], CollapseConfig()) == []


def test_nothing_is_normal_before_ten_measurements() -> None:
    history = [health(k + 1, spread=0.4 if k < 4 else 0.0) for k in range(10)]
    assert findings(history, [], CollapseConfig(patience=1)) == []
    assert signals(findings(history, [], CollapseConfig(patience=1, baseline=4))) == ["spread"]


def test_spread_below_a_tenth_for_ten_iterations_stops() -> None:
    assert signals(run([{"spread": 0.039}] * 9)) == ["spread"]
    found = run([{"spread": 0.039}] * 10)
    assert signals(found) == ["spread", "no_spread"]
    assert found[1].is_stop
    assert "below 10% of it since iteration 11" in found[1].text
    assert signals(run([{"spread": 0.041}] * 10)) == ["spread"]


def test_five_evaluations_below_one_percent_stop() -> None:
    config = CollapseConfig()
    failed = [Validation(iteration=10 * k, success=0.009) for k in range(5)]
    (found,) = findings([], failed, config)
    assert (found.signal, found.is_stop) == ("no_success", True)
    assert "since iteration 0;" in found.text
    assert findings([], failed[:4], config) == []
    assert findings([], [*failed, Validation(iteration=50, success=0.01)], config) == []


def test_five_iterations_of_which_the_filter_kept_nothing_stop() -> None:
    assert run([{"groups_kept": 0}] * 4) == []
    (found,) = run([{"groups_kept": 0}] * 5)
    assert (found.signal, found.is_stop) == ("no_step", True)
    assert "since iteration 11:" in found.text
    assert run([{"groups_kept": 0}] * 4 + [{"groups_kept": 1}] + [{"groups_kept": 0}] * 4) == []


def test_a_watch_tells_a_finding_once_and_again_after_it_has_passed() -> None:
    watch = CollapseWatch(CollapseConfig(patience=2))
    told = []
    for k, spread in enumerate([0.4] * 10 + [0.05] * 4 + [0.4] * 2 + [0.05] * 3):
        told += [(k + 1, finding.signal) for finding in watch.observe(health(k + 1, spread=spread))]
    assert told == [(12, "spread"), (18, "spread")]
    assert signals(watch.current()) == ["spread"]


def test_a_resumed_watch_goes_on_as_if_it_had_never_stopped() -> None:
    history = [health(k + 1, spread=0.4 if k < 10 else 0.05) for k in range(17)]
    validations = [Validation(iteration=3 * k, success=0.0) for k in range(5)]
    whole = CollapseWatch(CollapseConfig())
    for validation in validations[:1]:
        whole.validated(validation)
    news: list[list[str]] = []
    for one in history:
        news.append(signals(whole.observe(one)))
        for validation in validations:
            if validation.iteration == one.iteration:
                news[-1] += signals(whole.validated(validation))
    for cut in range(len(history)):
        past = [v for v in validations if v.iteration <= history[cut].iteration]
        resumed = CollapseWatch(CollapseConfig(), history[: cut + 1], past)
        later = []
        for one in history[cut + 1 :]:
            later.append(signals(resumed.observe(one)))
            for validation in validations:
                if validation.iteration == one.iteration:
                    later[-1] += signals(resumed.validated(validation))
        assert later == news[cut + 1 :]
    assert [k + 1 for k, one in enumerate(news) if one] == [12, 15]


def test_a_rollback_forgets_what_came_later() -> None:
    watch = CollapseWatch(CollapseConfig(patience=2))
    for k in range(10):
        watch.observe(health(k + 1))
    watch.validated(Validation(iteration=10, success=0.0))
    watch.observe(health(11, spread=0.01))
    assert signals(watch.observe(health(12, spread=0.01))) == ["spread"]
    assert watch.observe(health(10)) == []
    assert watch.current() == []
    watch.observe(health(11, spread=0.01))
    assert signals(watch.observe(health(12, spread=0.01))) == ["spread"]
    for k in range(4):
        assert watch.validated(Validation(iteration=12 + k, success=0.0)) == []
    assert signals(watch.validated(Validation(iteration=16, success=0.0))) == ["no_success"]


def test_off_looks_at_nothing() -> None:
    assert run([{"spread": 0.0, "groups_kept": 0}] * 30, action="off") == []


def test_a_tightened_filter_keeps_the_quarter_with_most_reward_spread() -> None:
    found = tightened(FilterConfig(method="min_p", value=0.5, score="length", compensation="sqrt"))
    assert found == FilterConfig(method="top_k", value=0.25, score="reward_std", compensation="sqrt")


@pytest.mark.parametrize("setting", [{"action": "panic"}, {"lr_factor": 1.0}, {"patience": 0}, {"window": 3}])
def test_settings_that_mean_nothing_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CollapseConfig(**setting)
