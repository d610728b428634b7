from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.envs.types import Outcome, Task, Trajectory, Turn, VersionSpan
from milepost.reward.evaluators.summary import by_cohort, summarize, together
from milepost.reward.evaluators.variance import reward_variance
from milepost.reward.evaluators.wilson import wilson_interval

REWARD = st.floats(-100, 100)


def turn(reward: float, action: str | None = "go") -> Turn:
    span = VersionSpan(version=0, start=0, end=1)
    return Turn(
        prompt_ids=[1], response_ids=[2], logprobs=[-1.0], versions=[span],
        anchor="a", next_anchor="b", action=action, reward=reward,
    )  # fmt: skip


def trajectory(index: int, outcome: Outcome, turns: list[Turn]) -> Trajectory:
    task = Task(env="m:E", seed=0, split="heldout")
    return Trajectory(task=task, group_id="g", index=index, turns=turns, outcome=outcome)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"), [(6, 40, 0.0706, 0.2907), (2, 40, 0.0138, 0.1650), (2, 9, 0.063, 0.547)]
)
def test_wilson_intervals_computed_by_hand(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=6e-4)


def test_without_trials_anything_is_possible() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_wilson_interval_holds_the_share_and_mirrors_failures(trial: tuple[int, int]) -> None:
    successes, n = trial
    low, high = wilson_interval(successes, n)
    assert 0.0 <= low <= successes / n <= high <= 1.0
    assert low < high
    assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("successes", "n"), [(3, 2), (-1, 2), (1, 0)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes of {n}"):
        wilson_interval(successes, n)


def test_reward_variance_computed_by_hand() -> None:
    variance = reward_variance([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert variance.within == pytest.approx(1 / 12)
    assert variance.zero_share == pytest.approx(2 / 3)


@given(st.lists(st.lists(REWARD, min_size=1, max_size=6), min_size=1, max_size=6))
def test_the_variance_of_all_rewards_is_that_inside_groups_and_that_of_their_means(groups: list[list[float]]) -> None:
    pooled = np.var([reward for group in groups for reward in group])
    of_means = np.var([np.mean(group) for group in groups for _ in group])
    found = reward_variance(groups)
    assert found.between == pytest.approx(of_means, rel=1e-9, abs=1e-9)
    assert found.within + of_means == pytest.approx(pooled, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("groups", [[], [[1.0], []]])
def test_variance_of_nothing_is_refused(groups: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="at least one group"):
        reward_variance(groups)


def test_a_summary_computed_by_hand() -> None:
    summary = summarize(
        [
            trajectory(0, "success", [turn(0.0), turn(1.0)]),
            trajectory(1, "failure", [turn(0.0, action=None)]),
            trajectory(2, "truncated", [turn(-0.1, action=None), turn(0.0), turn(0.0), turn(0.0), turn(0.0)]),
            trajectory(3, "success", [turn(0.5), turn(0.5)]),
        ]
    )
    assert (summary.episodes, summary.success_rate) == (4, 0.5)
    assert (summary.success_low, summary.success_high) == wilson_interval(2, 4)
    assert (summary.mean_turns, summary.invalid_share) == (2.5, 0.2)
    assert (summary.turns_p50, summary.turns_p99) == (2, 5), "of 1, 2, 2, 5 turns"
    assert (summary.cut_share, summary.context_full_share) == (0.0, 0.0)
    assert summary.mean_reward == pytest.approx((1.0 + 0.0 - 0.1 + 1.0) / 4)


def test_responses_that_were_cut_and_episodes_that_filled_the_context_are_counted() -> None:
    cut = msgspec.structs.replace(turn(0.0), stopped=False)
    full = msgspec.structs.replace(trajectory(1, "truncated", [cut, turn(0.0), cut]), context_full=True)
    summary = summarize([trajectory(0, "success", [turn(1.0)]), full])
    assert (summary.cut_share, summary.context_full_share) == (2 / 4, 1 / 2)


def in_cohort(cohort: str, outcome: Outcome) -> Trajectory:
    return msgspec.structs.replace(trajectory(0, outcome, [turn(0.0)]), cohort=cohort)


def test_success_by_cohort_computed_by_hand() -> None:
    played = [in_cohort("hard", "failure"), in_cohort("easy", "success"), in_cohort("", "failure")]
    played += [in_cohort("hard", "success"), in_cohort("hard", "truncated"), in_cohort("hard", "failure")]
    found = summarize(played).cohorts
    assert list(found) == ["easy", "hard"]
    assert (found["easy"].episodes, found["easy"].success) == (1, 1.0)
    assert (found["hard"].episodes, found["hard"].success) == (4, 0.25)
    assert (found["hard"].success_low, found["hard"].success_high) == wilson_interval(1, 4)


def test_cohorts_of_two_environments_do_not_mix() -> None:
    easy = in_cohort("easy", "success")
    lake, door = (
        msgspec.structs.replace(easy, task=msgspec.structs.replace(easy.task, env_name=name))
        for name in ("lake", "door")
    )
    nothing = msgspec.structs.replace(lake, cohort="")
    assert list(by_cohort([lake, door, nothing, easy])) == ["door/easy", "easy", "lake/easy"]
    assert [t.cohort_name for t in (lake, nothing, in_cohort("", "success"))] == ["lake/easy", "lake", ""]


def test_episodes_without_a_cohort_make_none() -> None:
    assert by_cohort([in_cohort("", "success")]) == {}


def test_more_cohorts_than_anybody_reads_are_counted_together() -> None:
    played = [in_cohort(f"map {n:03d}", "success" if n < 33 else "failure") for n in range(36)]
    played.append(in_cohort("other", "failure"))
    found = by_cohort(played)
    assert list(found) == [*(f"map {n:03d}" for n in range(32)), "other"]
    # map 032 was won; maps 033, 034, 035 and the one that is called other were not.
    assert (found["other"].episodes, found["other"].success) == (5, 0.2)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1))
def test_cohorts_put_together_are_all_their_episodes(played: list[tuple[str, bool]]) -> None:
    cohorts = by_cohort([in_cohort(cohort, "success" if won else "failure") for cohort, won in played])
    whole = together(list(cohorts.values()))
    assert whole.episodes == len(played)
    assert whole.success == sum(won for _, won in played) / len(played)
    assert (whole.success_low, whole.success_high) == wilson_interval(sum(won for _, won in played), len(played))


def test_no_cohorts_cannot_be_put_together() -> None:
    with pytest.raises(ValueError, match="no cohorts"):
        together([])


def test_a_summary_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no trajectories"):
        summarize([])
