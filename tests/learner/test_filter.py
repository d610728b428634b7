"""The reward-variance filter on the worked scores [.5, 0, .3, .2], and what happens to groups without variance."""

import pytest
from pydantic import ValidationError

from milepost.learner.credit.assignment import (
    INVALID,
    CreditGroup,
    CreditTrajectory,
    CreditTurn,
)
from milepost.learner.credit.crbc import CRBCConfig
from milepost.learner.credit.starpo import StarPOConfig
from milepost.learner.credit.strategies import build
from milepost.learner.filter import REASONS, FilterConfig, Verdict, keep_groups

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
    strategy = build(CRBCConfig(w_step=w_step))
    return keep_groups(groups, [strategy.assign(group) for group in groups], FilterConfig(**config))


def kept(verdicts: list[Verdict]) -> list[int]:
    return [i for i, verdict in enumerate(verdicts) if verdict.keep]


@pytest.mark.parametrize(("top_p", "expected"), [(0.9, [0, 2, 3]), (0.7, [0, 2]), (0.5, [0]), (1.0, [0, 2, 3])])
def test_groups_are_kept_until_their_scores_reach_the_share(top_p: float, expected: list[int]) -> None:
    verdicts = judge([spread(0.5), spread(0.0), spread(0.3), spread(0.2)], top_p=top_p)
    assert kept(verdicts) == expected
    assert [verdict.score for verdict in verdicts] == pytest.approx([0.5, 0.0, 0.3, 0.2])


def test_nine_tenths_is_the_default_share() -> None:
    groups = [spread(1.0)] * 10
    assert kept(judge(groups)) == list(range(9))


def test_the_slack_of_a_hundredth_lets_the_last_group_go() -> None:
    # The sum is 1.0: without slack .9 takes both, with it .891 >= .89 takes the first only.
    assert kept(judge([spread(0.891), spread(0.109)])) == [0]
    assert kept(judge([spread(0.889), spread(0.111)])) == [0, 1]


def test_scores_below_the_slack_leave_nothing_to_train_on() -> None:
    verdicts = judge([spread(0.004), spread(0.005)])
    assert [verdict.reason for verdict in verdicts] == ["low_variance", "low_variance"]
    assert kept(verdicts) == []


def test_each_verdict_says_why() -> None:
    verdicts = judge([spread(0.2), spread(0.0), spread(0.5)], top_p=0.7)
    assert [verdict.reason for verdict in verdicts] == ["low_variance", "zero_variance", "top_p"]
    assert {verdict.reason for verdict in verdicts} < set(REASONS)


def test_a_group_of_failures_is_dropped_for_zero_variance() -> None:
    group = CreditGroup("g", (trajectory(0.0, action="x"), trajectory(0.0, action="y", num_turns=3)))
    assert judge([group]) == [Verdict(False, "zero_variance", 0.0)]


def test_a_group_of_successes_of_unequal_length_is_kept_for_its_step_credit() -> None:
    fast, slow = trajectory(1.0, won=True, action="x"), trajectory(1.0, won=True, action="y", num_turns=3)
    assert judge([CreditGroup("g", (fast, slow))]) == [Verdict(True, "step_signal", 0.0)]


def test_a_group_of_successes_by_equally_good_actions_is_dropped() -> None:
    group = CreditGroup("g", (trajectory(1.0, won=True, action="x"), trajectory(1.0, won=True, action="y")))
    assert judge([group]) == [Verdict(False, "zero_variance", 0.0)]


def test_step_credit_that_does_not_reach_the_total_keeps_no_group() -> None:
    fast, slow = trajectory(1.0, won=True, action="x"), trajectory(1.0, won=True, action="y", num_turns=3)
    assert judge([CreditGroup("g", (fast, slow))], w_step=0.0) == [Verdict(False, "zero_variance", 0.0)]


def test_penalties_do_not_count_as_reward_variance() -> None:
    group = CreditGroup("g", (trajectory(0.0, action=INVALID), trajectory(0.0)))
    strategy = build(StarPOConfig())
    credit = strategy.assign(group)
    assert credit.traj_adv[0] < 0
    assert keep_groups([group], [credit], FilterConfig()) == [Verdict(False, "zero_variance", 0.0)]


def test_a_group_of_one_has_no_variance() -> None:
    assert judge([CreditGroup("g", (trajectory(1.0, won=True),))]) == [Verdict(False, "zero_variance", 0.0)]


def test_without_a_filter_every_group_is_kept_with_its_score() -> None:
    verdicts = judge([spread(0.5), spread(0.0)], method="none")
    assert [(verdict.keep, verdict.reason) for verdict in verdicts] == [(True, "unfiltered")] * 2
    assert verdicts[0].score == pytest.approx(0.5)


def test_no_groups_give_no_verdicts() -> None:
    assert keep_groups([], [], FilterConfig()) == []


def test_a_missing_credit_is_refused() -> None:
    with pytest.raises(ValueError, match="1 groups with 0 credits"):
        keep_groups([spread(0.5)], [], FilterConfig())


@pytest.mark.parametrize("setting", [{"top_p": 0.0}, {"top_p": 1.1}, {"method": "top_k"}, {"topp": 0.9}])
def test_settings_that_mean_nothing_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FilterConfig(**setting)
