"""A model folder of anybody's is judged on a suite through a real engine, before any run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from milepost.cluster.evaluation.compare import compare
from milepost.cluster.evaluation.store import read
from milepost.cluster.runlog.saved_policy import digest
from milepost.cluster.trajectories.reader import Wanted
from milepost.cluster.trajectories.reader import read as read_episodes
from tests.system.driving import START_S, Driver, write_config

pytestmark = pytest.mark.services
SUITE = """name = "coins"
created = 2020-01-01
"""
SCENARIO = """[[scenario]]
name = "{name}"
env = "tests.coin_env:CoinEnv"
seed = {seed}
options = {{ turns = {turns} }}
cohort = "{turns} turns"
ideal_steps = {turns}
"""


@pytest.mark.timeout(600)
def test_a_model_folder_plays_a_suite_through_the_engine_and_is_scored_by_an_async_reward(
    tmp_path: Path, tiny_policy: Path, start: Callable[..., Driver]
) -> None:
    reward = {"path": "tests.system.told_rewards:hits"}
    config = write_config(tmp_path, tiny_policy, reward=reward)
    suite, runs = tmp_path / "coins.toml", tmp_path / "runs"
    told = [SCENARIO.format(name=name, seed=900_000 + k, turns=3 if k < 4 else 2) for k, name in enumerate("abcde")]
    suite.write_text("\n".join([SUITE, *told]))
    asked = ("--suite", suite, "--episodes", "4", "--prices", "1,0.1,2", "--json", "--runs-dir", runs)
    driver = start("eval", tiny_policy, "--config", config, *asked)
    assert driver.end(START_S) == 0, driver.said()
    assert "milepost: suite coins is " in driver.said()  # it is old
    [line] = [line for line in driver.said().splitlines() if line.startswith("{")]
    result = json.loads(line)
    found = read(Path(result["file"]))
    policy = found.policy
    assert (policy.source, policy.version, policy.sha256) == (str(tiny_policy), 0, digest(tiny_policy))
    assert {name: bucket.episodes for name, bucket in found.buckets.items()} == {
        "all": 20, "cohort 2 turns": 4, "cohort 3 turns": 16,
    }  # fmt: skip
    assert found.buckets["cohort 3 turns"].steps_p99 == 3
    assert found.buckets["all"].cost is not None
    assert [[played.number for played in scenario.episodes] for scenario in found.scenarios] == [[0, 1, 2, 3]] * 5

    wanted = Wanted(episode=None, fate="evaluation", task=None, worst=False, count=99)
    stored = read_episodes(Path(result["file"]).parent / "trajectories", wanted)
    rows = [episode.row for episode in stored if episode.row["num_turns"] == 3]
    hits, won = sum(row["reward"] for row in rows), sum(row["outcome"] == "success" for row in rows)
    assert len(rows) == 16
    assert won == 16 * found.buckets["cohort 3 turns"].native["success"].mean
    assert (
        2 * won <= hits <= 16 + 2 * won
    )  # two or three of three calls are right where the coin says success, else fewer
    assert {row.difference.verdict for row in compare(found, found).compared} == {"undecided"}
    assert driver.left(deadline_s=10) == []
