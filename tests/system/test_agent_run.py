"""A whole run of an agent program: what it says goes through the endpoint to the engine, and is trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.system.driving import START_S, Driver, write_config

pytestmark = pytest.mark.services


@pytest.mark.timeout(600)
def test_an_agent_program_is_trained_unmodified_call_by_call(
    tmp_path: Path, tiny_policy: Path, start: Callable[..., Driver]
) -> None:
    path = write_config(
        tmp_path,
        tiny_policy,
        run={
            "iterations": 2,
            "groups_per_iteration": 2,
            "group_size": 4,
            "eval_episodes": 4,
            "eval_splits": ["heldout"],
        },
        env={"path": "milepost.envs.frozen_lake:FrozenLakeText", "options": {"steps": 4}},
        agent={"path": "tests.actors.agents.wandering_agent:run"},
        actors={"max_turns": 24},
        sampling={"max_tokens": 8},
    )
    driver = start("train", path)
    assert driver.end(START_S) == 0, driver.said()
    assert [record.iteration for record in driver.records()] == [1, 2]
    assert all(record.parity is not None and record.parity < 1e-4 for record in driver.records())
    assert max(record.prefix_breaks for record in driver.records()) > 0, "no episode had more than one lineage"
    turns = [row for part in sorted(driver.folder.path.glob("trajectories/turns-*.parquet")) for row in rows(part)]
    trained = [turn for turn in turns if turn["trained"]]
    assert {turn["lineage"] for turn in trained} > {0}
    assert len({turn["credit"] for turn in trained}) > 1
    assert driver.left(deadline_s=10) == []


def rows(part: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.read_table(part).to_pylist()
    return found
