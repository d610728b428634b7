"""The rollout filters on the worked scores [.5, 0, .3, .2], and what happens to groups without variance."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from milepost.learner.credit.assignment import (
    INVALID,
    CreditGroup,
    CreditTrajectory,
    CreditTurn,
)
from milepost.learner.credit.filter import REASONS, FilterConfig, Verdict, keep_groups, needs, reason_counts, weighted
from milepost.learner.credit.strategies.crbc import CRBCConfig
from milepost.learner.credit.strategies.registry import build
from milepost.learner.credit.strategies.starpo import StarPOConfig

ROOT2 = 2**0.5


def trajectory(reward: float, *, num_turns: int = 1, action: str = "x", won: bool = False) -> CreditTrajectory:
    anchors = [f"{action}{t}" if t else "start" for t in range(num_turns + 1)]
    turns = tuple(
        CreditTurn(
            anchors[t],
            action,
            anchors[t + 1],
            reward if t == num_turns - 1 else 0.0,
            action == INVALID,
            num_tokens=1,
        )
        for t in range(num_turns)
    )
    return CreditTrajectory("success" if won else "failure", turns)


def spread(score: float) -> CreditGroup:
    """Two failures whose returns have the standard deviation `score` (ddof=1): |a - b| / sqrt(2)."""
    return CreditGroup("g", (trajectory(score * ROOT2), trajectory(0.0)))


def judge(groups: list[CreditGroup], *, w_step: float = 5.0, **config: object) -> list[Verdict]:
    strategy = build(CRBCConfig(w_step=w_step, sigma_min=0.1))
    return keep_groups(groups, [strategy.assign(group) for group in groups], FilterConfig(**config))


WORKED = (0.5, 0.0, 0.3, 0.2)


def worked(**config: object) -> list[Verdict]:
    return judge([spread(score) for score in WORKED], **config)


def kept(verdicts: list[Verdict]) -> list[int]:
    return [i for i, verdict in enumerate(verdicts) if verdict.keep]


@pytest.mark.parametrize(
    ("method", "value", "expected"),
    [
        ("top_p", 0.9, [0, 2, 3]),
        ("top_p", 0.7, [0, 2]),
        ("top_p", 0.5, [0]),
        ("top_p", 1.0, [0, 2, 3]),
        ("top_p_softmax", 0.9, [0, 2, 3]),
        ("top_p_softmax", 0.7, [0, 2]),
        ("top_p_softmax", 0.39, [0]),
        ("top_p_softmax", 0.391, [0, 2]),
        ("top_p_softmax", 1.0, [0, 2, 3]),
        ("top_k", 0.25, [0]),
        ("top_k", 0.1, [0]),
        ("top_k", 0.5, [0, 2]),
        ("top_k", 1.0, [0, 2, 3]),
        ("top_k_absolute", 2, [0, 2]),
        ("top_k_absolute", 9, [0, 2, 3]),
        ("min_p", 0.5, [0, 2]),
        ("min_p", 0.39, [0, 2, 3]),
        ("soft", 0.9, [0, 2, 3]),
    ],
)
def test_every_method_takes_the_groups_of_the_worked_scores(method: str, value: float, expected: list[int]) -> None:
    verdicts = worked(method=method, value=value)
    assert kept(verdicts) == expected
    assert [verdict.score for verdict in verdicts] == pytest.approx(WORKED)
    assert all((verdict.weight > 0) == verdict.keep for verdict in verdicts)


def test_soft_weights_are_the_scores_over_the_largest() -> None:
    assert [verdict.weight for verdict in worked(method="soft")] == pytest.approx([1.0, 0.0, 0.6, 0.4])


@pytest.mark.parametrize(("compensation", "factor"), [("none", 1.0), ("linear", 0.75), ("sqrt", 0.8660)])
def test_compensation_multiplies_by_the_kept_three_quarters_or_their_root(compensation: str, factor: float) -> None:
    weights = [verdict.weight for verdict in worked(compensation=compensation)]
    assert weights == pytest.approx([factor, 0.0, factor, factor], abs=1e-4)
    soft = [verdict.weight for verdict in worked(method="soft", compensation=compensation)]
    assert soft == pytest.approx([factor, 0.0, 0.6 * factor, 0.4 * factor], abs=1e-4)


def test_a_share_of_the_groups_that_is_a_whole_number_is_not_rounded_down() -> None:
    # .29 * 100 is 28.999999999999996 in floating point
    assert len(kept(judge([spread(0.5)] * 100, method="top_k", value=0.29))) == 29


def test_weights_reach_turns_and_tokens_but_not_the_parts_they_are_made_of() -> None:
    credit = build(StarPOConfig()).assign(CreditGroup("g", (trajectory(1.0), trajectory(0.0))))
    credit = replace(credit, token_total=((np.array([1.0, -1.0]),), (np.array([2.0]),)))
    (half,) = weighted([credit], [Verdict(True, "selected", 0.7, 0.5)])
    assert [x.tolist() for x in half.total] == [[pytest.approx(0.5 / ROOT2)], [pytest.approx(-0.5 / ROOT2)]]
    assert half.token_total is not None
    assert [[x.tolist() for x in turns] for turns in half.token_total] == [[[0.5, -0.5]], [[1.0]]]
    assert half.traj_adv.tolist() == credit.traj_adv.tolist()
    with pytest.raises(ValueError, match="1 credits with 0 verdicts"):
        weighted([credit], [])


def with_entropies(group: CreditGroup, *entropies: float) -> CreditGroup:
    """The same group, every turn of trajectory i with the i-th entropy."""
    return replace(
        group,
        trajectories=tuple(
            replace(t, turns=tuple(msgspec.structs.replace(turn, entropy=h) for turn in t.turns))
            for t, h in zip(group.trajectories, entropies, strict=True)
        ),
    )


def test_length_is_the_mean_number_of_tokens_and_entropy_is_weighted_by_tokens() -> None:
    group = CreditGroup("g", (trajectory(1.0, won=True), trajectory(0.0, num_turns=3)))
    group = with_entropies(group, 2.0, 1.0)
    assert judge([group], score="length")[0].score == 2.0
    assert judge([group], score="entropy")[0].score == pytest.approx((2.0 + 3 * 1.0) / 4)


def test_a_length_score_still_drops_groups_without_any_signal() -> None:
    dull = CreditGroup("g", (trajectory(0.0, num_turns=9), trajectory(0.0, num_turns=9)))
    verdicts = judge([dull, spread(0.5)], score="length", method="top_k_absolute", value=2)
    assert [verdict.reason for verdict in verdicts] == ["zero_variance", "selected"]


def test_a_step_score_keeps_groups_whose_returns_differ_though_no_step_earned_credit() -> None:
    verdicts = judge([spread(0.5)], score="step_std")
    assert verdicts == [Verdict(True, "reward_signal", 0.0, 1.0)]


def test_the_step_score_is_the_spread_of_step_credit_over_all_turns() -> None:
    # Q is .98 and .98^3, V their mean .960596, the scale's floor .1: credits +-.19404; two turns are not compared
    fast, slow = trajectory(1.0, won=True, action="x"), trajectory(1.0, won=True, action="y", num_turns=3)
    (verdict,) = judge([CreditGroup("g", (fast, slow))], score="step_std")
    assert verdict.reason == "selected"
    assert verdict.score == pytest.approx(0.19404 / ROOT2)


def test_an_entropy_score_says_what_it_needs_and_which_turn_lacks_it() -> None:
    assert needs(FilterConfig(score="entropy")) == {"entropy"}
    assert needs(FilterConfig()) == needs(FilterConfig(method="none", score="entropy")) == frozenset()
    with pytest.raises(ValueError, match="group g, trajectory 0, turn 0 has no entropy"):
        judge([spread(0.5)], score="entropy")


@settings(max_examples=50)
@given(
    st.lists(st.floats(0.0, 2.0), min_size=1, max_size=8),
    st.sampled_from(["top_p", "top_p_softmax", "top_k", "min_p", "soft", "none"]),
    st.floats(0.05, 1.0),
)
def test_a_kept_group_never_scores_less_than_a_dropped_one(scores: list[float], method: str, value: float) -> None:
    verdicts = judge([spread(score) for score in scores], method=method, value=value)
    dropped = [verdict.score for verdict in verdicts if not verdict.keep]
    assert all(verdict.score >= max(dropped, default=0.0) for verdict in verdicts if verdict.keep)
    assert sum(reason_counts(verdicts).values()) == len(scores)


def test_nine_tenths_is_the_default_share() -> None:
    groups = [spread(1.0)] * 10
    assert kept(judge(groups)) == list(range(9))


def test_the_slack_of_a_hundredth_lets_the_last_group_go() -> None:
    # The sum is 1.0: without slack .9 takes both, with it .891 >= .89 takes the first only.
    assert kept(judge([spread(0.891), spread(0.109)])) == [0]
    assert kept(judge([spread(0.889), spread(0.111)])) == [0, 1]


def test_a_success_that_pays_two_thousandths_is_trained_on_like_one_that_pays_one() -> None:
    groups = [spread(0.002 * share) for share in (0.5, 0.5, 0.5, 0.4, 0.4, 0.0, 0.5, 0.35)]
    assert kept(judge(groups)) == [0, 1, 2, 3, 4, 6, 7]
    assert len(kept(judge([spread(0.002)] * 8))) == 8


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=8),
    st.sampled_from(["top_p", "top_k", "min_p", "soft"]),
    st.floats(0.05, 1.0),
    st.sampled_from([2.0**-18, 2.0**-7, 2.0**12]),
)
def test_the_unit_of_the_reward_changes_no_verdict(scores: list[int], method: str, value: float, unit: float) -> None:
    inside, outside = (
        judge([spread(score * each) for score in scores], method=method, value=value) for each in (1.0, unit)
    )
    assert kept(inside) == kept(outside)


def test_a_share_below_the_slack_takes_the_largest() -> None:
    assert kept(judge([spread(0.4), spread(0.5)], value=0.005)) == [1]


def test_each_verdict_says_why() -> None:
    verdicts = judge([spread(0.2), spread(0.0), spread(0.5)], value=0.7)
    assert [verdict.reason for verdict in verdicts] == ["low_score", "zero_variance", "selected"]
    counts = reason_counts(verdicts)
    assert list(counts) == list(REASONS)
    assert [counts[reason] for reason in ("selected", "low_score", "zero_variance", "step_signal")] == [1, 1, 1, 0]


def test_a_group_of_failures_is_dropped_for_zero_variance() -> None:
    group = CreditGroup("g", (trajectory(0.0, action="x"), trajectory(0.0, action="y", num_turns=3)))
    assert judge([group]) == [Verdict(False, "zero_variance", 0.0, 0.0)]


def test_a_group_of_successes_of_unequal_length_is_kept_for_its_step_credit() -> None:
    fast, slow = trajectory(1.0, won=True, action="x"), trajectory(1.0, won=True, action="y", num_turns=3)
    assert judge([CreditGroup("g", (fast, slow))]) == [Verdict(True, "step_signal", 0.0, 1.0)]


def test_a_group_of_successes_by_equally_good_actions_is_dropped() -> None:
    group = CreditGroup("g", (trajectory(1.0, won=True, action="x"), trajectory(1.0, won=True, action="y")))
    assert judge([group]) == [Verdict(False, "zero_variance", 0.0, 0.0)]


def test_step_credit_that_does_not_reach_the_total_keeps_no_group() -> None:
    fast, slow = trajectory(1.0, won=True, action="x"), trajectory(1.0, won=True, action="y", num_turns=3)
    assert judge([CreditGroup("g", (fast, slow))], w_step=0.0) == [Verdict(False, "zero_variance", 0.0, 0.0)]


def test_penalties_do_not_count_as_reward_variance() -> None:
    group = CreditGroup("g", (trajectory(0.0, action=INVALID), trajectory(0.0)))
    strategy = build(StarPOConfig())
    credit = strategy.assign(group)
    assert credit.traj_adv[0] < 0
    assert keep_groups([group], [credit], FilterConfig()) == [Verdict(False, "zero_variance", 0.0, 0.0)]


def test_a_group_of_one_has_no_variance() -> None:
    assert judge([CreditGroup("g", (trajectory(1.0, won=True),))]) == [Verdict(False, "zero_variance", 0.0, 0.0)]


def test_without_a_filter_every_group_is_kept_with_its_score() -> None:
    verdicts = judge([spread(0.5), spread(0.0)], method="none")
    assert [(verdict.keep, verdict.reason) for verdict in verdicts] == [(True, "unfiltered")] * 2
    assert verdicts[0].score == pytest.approx(0.5)


def test_no_groups_give_no_verdicts() -> None:
    assert keep_groups([], [], FilterConfig()) == []


def test_a_missing_credit_is_refused() -> None:
    with pytest.raises(ValueError, match="1 groups with 0 credits"):
        keep_groups([spread(0.5)], [], FilterConfig())


@pytest.mark.parametrize(
    "setting",
    [
        {"value": 0.0},
        {"value": 1.1},
        {"method": "top_k", "value": 2},
        {"method": "top_k_absolute"},
        {"method": "top_k_absolute", "value": 0.5},
        {"method": "best"},
        {"top_p": 0.9},
    ],
)
def test_settings_that_mean_nothing_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FilterConfig(**setting)
