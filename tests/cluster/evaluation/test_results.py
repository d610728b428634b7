"""Results of a suite: in buckets, as a file, and read from the very rows that a run stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.evaluation.episodes import judged, record
from milepost.cluster.evaluation.store import find, read, write
from milepost.cluster.evaluation.tables import results_table
from milepost.cluster.runlog import runs
from milepost.cluster.trajectories.reader import Wanted
from milepost.cluster.trajectories.reader import read as read_episodes
from milepost.envs.types import Task, Trajectory, Turn, VersionSpan
from milepost.reward.evaluators.episode import Call
from milepost.reward.evaluators.signals import Prices
from milepost.reward.evaluators.wilson import wilson_interval
from tests.cluster.evaluation.played_results import results
from tests.cluster.evaluation.scripted_agents import played


def test_scores_are_told_of_all_and_of_each_cohort() -> None:
    found = results("sound", "idle", episodes=4)
    assert {name: each.episodes for name, each in found.buckets.items()} == {
        "all": 12, "cohort hurried": 4, "cohort usual": 8,
    }  # fmt: skip
    success = found.buckets["cohort hurried"].native["success"]
    assert (success.mean, success.low, success.high) == (0.5, *wilson_interval(2, 4))
    # V of the start is half of 0.98^4, for half of them win; who wins gains the rest, who idles nothing
    progress = found.buckets["all"].native["goal_progress"]
    assert progress.mean == pytest.approx((1 - 0.98**4 / 2) / 2)
    assert [bucket.episodes for bucket in found.steps] == [12, 6, 6, 6]


def test_a_table_shows_both_families_side_by_side() -> None:
    told = results_table(results("sound", episodes=2, prices=Prices(prompt=1, cached=0.1, response=2)))
    assert told.startswith("run-a, policy version 3, suite refund-desk of 2026-11-27 (sha256 ")
    [line] = [line for line in told.splitlines() if line.startswith("task ")][:1]
    low, high = wilson_interval(6, 6)
    assert line.split()[1:4] == ["1.000", f"[{low:.3f},", f"{high:.3f}]"]
    assert "cohort hurried, 2 episodes" in told
    assert "cost: mean 0.0" in told
    assert told.count("at 1 (cached 0.1) and 2 a million tokens") == 3


def test_results_are_found_by_file_by_folder_and_as_the_newest_of_a_run(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "desk")
    run.resolved.write_text("")
    written = []
    for stamp, agent in (("20261127-1", "idle"), ("20261127-2", "sound")):
        folder = run.path / "evaluations" / stamp
        folder.mkdir(parents=True)
        written.append(write(results(agent, episodes=1), folder))
    older, newer = map(read, written)
    assert find(str(written[0]), tmp_path) == find(str(written[0].parent), tmp_path) == older != newer
    assert find("latest", tmp_path) == find(run.run_id, tmp_path) == newer


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("{", "no results of a suite"), ('{"format": 2}', "no results of a suite"), (None, "No such file")],
)
def test_a_file_that_holds_no_results_is_one_line(tmp_path: Path, text: str | None, complaint: str) -> None:
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=complaint) as refused:
        read(path)
    assert str(path) in str(refused.value)


def test_a_run_that_was_played_on_no_suite_says_how(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "desk")
    run.resolved.write_text("")
    with pytest.raises(ConfigError, match=f"{run.run_id} was played on no suite; milepost eval {run.run_id} --suite"):
        find("latest", tmp_path)


def test_a_stored_turn_by_hand() -> None:
    look, policy, refund, answer = judged(played("sound")).steps
    assert policy.calls == (Call(name="read_policy", arguments="{}"),)
    assert [call.name for step in (look, policy, refund) for call in step.calls] == ["look_up", "read_policy", "refund"]
    assert (answer.calls, answer.action, answer.observation) == ((), "The order is refunded.", "")
    assert policy.observation.endswith("What came broken is refunded once, after the order was looked up.")
    # the prompt goes on from the turn before and its response
    assert (look.cached_tokens, policy.cached_tokens) == (0, look.prompt_tokens + look.response_tokens)
    assert policy.prompt_tokens > policy.cached_tokens


def test_what_was_just_played_is_judged_as_what_is_read_from_its_files(tmp_path: Path, tiny_policy: Path) -> None:
    def turn(k: int) -> Turn:
        return Turn(
            prompt_ids=[*range(5 + 4 * k)], response_ids=[5 + 4 * k, 6 + 4 * k], logprobs=[-1.0, -2.0],
            versions=[VersionSpan(version=0, start=0, end=2)], anchor=str(k), next_anchor=str(k + 1),
            action='look {"n": 1}', reward=0.5, progress=0.25, tool={"calls": [{"name": "look", "fits": True}],
            "violations": ["no ticket"]},
        )  # fmt: skip

    task = Task(env="m:E", seed=3, split="heldout", env_name="corner")
    episodes = [
        Trajectory(task=task, group_id="eval", index=n, turns=[turn(0), turn(1)], outcome="success") for n in range(3)
    ]
    recorded = record(episodes, tmp_path / "trajectories", tiny_policy)
    wanted = Wanted(episode=None, fate=None, task=None, worst=False, count=9)
    stored = sorted(read_episodes(tmp_path / "trajectories", wanted), key=lambda found: found.row["index"])
    assert [judged(found) for found in stored] == [judged(found) for found in recorded]
    second = judged(stored[0]).steps[1]
    assert (second.violations, second.calls[0].arguments, second.progress) == (("no ticket",), '{"n": 1}', 0.25)
    assert (second.prompt_tokens, second.cached_tokens, second.response_tokens) == (9, 7, 2)
