"""Comparisons: pairs by scenario and number, one reference for both, verdicts, and what is refused."""

from __future__ import annotations

import msgspec
import pytest

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.evaluation.compare import Compared, Comparison, compare
from milepost.cluster.evaluation.tables import comparison_table
from tests.cluster.evaluation.played_results import results


def row(found: Comparison, metric: str, bucket: str = "all") -> Compared:
    [there] = [each for each in found.compared if (each.metric, each.bucket) == (metric, bucket)]
    return there


def test_who_solves_the_tasks_is_better_than_who_idles_and_worse_the_other_way_round() -> None:
    sound, idle = results("sound", episodes=4), results("idle", episodes=4, source="run-b", sha256="b" * 64)
    found, back = compare(idle, sound), compare(sound, idle)
    success = row(found, "success")
    assert (success.first, success.second, success.difference.pairs) == (0, 1, 12)
    assert success.difference.p == pytest.approx(2 / 2**12)
    for metric in ("success", "trajectory_score", "goal_progress", "step_efficiency"):
        assert (row(found, metric).difference.verdict, row(back, metric).difference.verdict) == ("better", "worse")
    safety = row(found, "safety").difference
    assert (safety.verdict, safety.more_pairs) == ("undecided", None)
    assert row(found, "steps").difference.verdict == "worse"  # four steps instead of one
    assert found.notes == []


def test_a_cohort_of_few_episodes_is_undecided_and_says_how_many_more_would_tell() -> None:
    found = compare(results("idle", episodes=4), results("sound", episodes=4))
    hurried = row(found, "success", "cohort hurried").difference
    assert (hurried.pairs, hurried.p, hurried.verdict) == (4, 0.125, "undecided")
    assert hurried.more_pairs == 2  # six that all go one way are the fewest that decide
    assert row(found, "success", "cohort usual").difference.verdict == "better"


def test_both_are_scored_by_the_episodes_of_both() -> None:
    alone = results("sound", episodes=4)
    assert alone.buckets["all"].native["goal_progress"].mean == pytest.approx(1 - 0.98**4)
    found = row(compare(results("idle", episodes=4), alone), "goal_progress")
    assert (found.first, found.second) == (0, pytest.approx(1 - 0.98**4 / 2))


def test_a_policy_beside_itself_is_undecided_in_everything_and_told_to_be_the_same() -> None:
    found = compare(results("sound", "idle", episodes=4), results("sound", "idle", episodes=4))
    assert {each.difference.verdict for each in found.compared} == {"undecided"}
    assert {each.difference.more_pairs for each in found.compared} == {None}
    assert found.notes == ["both are the same policy by their digests: what differs is chance"]


def test_episodes_without_a_partner_are_counted_and_left_out() -> None:
    found = compare(results("sound", episodes=4), results("sound", episodes=2))
    assert (found.pairs, found.unpaired, row(found, "steps").difference.pairs) == (6, 6, 6)


def test_other_sampling_is_noted() -> None:
    hot = results("sound", episodes=1, temperature=1.5, sha256="b" * 64)
    [note] = compare(results("sound", episodes=1), hot).notes
    assert note.startswith("temperature was 1 for the first and 1.5 for the second")


def test_unlike_suites_are_refused_by_name() -> None:
    sound = results("sound", episodes=1)
    other = msgspec.structs.replace(sound, suite=msgspec.structs.replace(sound.suite, name="lake", sha256="0" * 64))
    with pytest.raises(
        ConfigError, match=r"\(suite refund-desk of .*\) and .*\(suite lake of .* 0{12}\) do not compare"
    ):
        compare(sound, other)


def test_results_without_a_common_episode_are_refused() -> None:
    sound = results("sound", episodes=1)
    empty = [msgspec.structs.replace(scenario, episodes=[]) for scenario in sound.scenarios]
    with pytest.raises(ConfigError, match="no episode in common"):
        compare(sound, msgspec.structs.replace(sound, scenarios=empty))


def test_the_table_says_better_worse_and_undecided() -> None:
    shown = comparison_table(compare(results("idle", episodes=4), results("sound", episodes=4, source="run-b")))
    lines = shown.splitlines()
    assert lines[:3] == ["first   run-a version 3", "second  run-b version 3", "12 pairs of episodes"]
    [success] = [line for line in lines if line.startswith("all ") and " success " in line]
    assert success.split()[2:6] == ["0.000", "1.000", "+1.000", "better"]
    [safety] = [line for line in lines if line.startswith("all ") and " safety " in line]
    assert safety.endswith("no difference seen")
