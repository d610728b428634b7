"""A model folder of anybody's is judged through a real engine, before any run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.driving import START_S, Driver, write_config

pytestmark = pytest.mark.services


@pytest.mark.timeout(600)
def test_a_model_folder_is_played_through_the_engine_and_scored_by_an_async_reward(
    tmp_path: Path, tiny_policy: Path, start: Callable[..., Driver]
) -> None:
    reward = {"path": "tests.system.told_rewards:hits"}
    config = write_config(tmp_path, tiny_policy, reward=reward)
    asked = ("--episodes", "16", "--json", "--runs-dir", tmp_path / "runs")
    driver = start("eval", tiny_policy, "--config", config, *asked)
    assert driver.end(START_S) == 0, driver.said()
    [line] = [line for line in driver.said().splitlines() if line.startswith("{")]
    result = json.loads(line)
    assert (result["run"], result["policy_version"], result["episodes"]) == (str(tiny_policy), 0, 16)
    assert result["mean_turns"] == 3
    hits, won = 16 * result["mean_reward"], 16 * result["success"]
    assert (
        2 * won <= hits <= 16 + 2 * won
    )  # two or three of three calls are right where the coin says success, else fewer
    assert driver.left(deadline_s=10) == []
