"""The order desk's two configurations, as short runs: tools are called, trained on, resumed and evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.system.driving import ROOT, START_S, Driver

pytestmark = [pytest.mark.services, pytest.mark.sweep]
SHORT = (
    "run.iterations=1", "run.groups_per_iteration=4", "run.eval_episodes=8", "model.warmup.episodes=200",
    "filter.method=none",
)  # fmt: skip


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("config", ["desk.toml", "desk_agent.toml"])
def test_a_policy_with_tools_is_warmed_up_trained_resumed_and_evaluated(
    config: str, tmp_path: Path, start: Callable[..., Driver]
) -> None:
    settings = [part for setting in (*SHORT, f"run.runs_dir={tmp_path / 'runs'}") for part in ("--set", setting)]
    path = ROOT / "deploy" / "configs" / config
    driver = start("train", path, *settings)
    assert driver.end(2 * START_S) == 0, driver.said()
    turns = [row for part in sorted(driver.folder.path.glob("trajectories/turns-*.parquet")) for row in rows(part)]
    trained = [turn for turn in turns if turn["trained"]]
    assert sum(str(turn["action"]).startswith(("first {", "next {", "cancel {")) for turn in trained) > len(trained) / 4
    assert len({turn["credit"] for turn in trained}) > 1
    again = start("train", path, *settings, "--resume", "latest", "--set", "run.iterations=2")
    assert again.end(START_S) == 0, again.said()
    assert [record.iteration for record in again.records()] == [1, 2]
    assert all(record.parity is not None and record.parity < 1e-4 for record in again.records())
    judged = start("eval", driver.folder.path, "--episodes", "8")
    assert judged.end(START_S) == 0, judged.said()
    assert "success" in judged.said()


def rows(part: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.read_table(part).to_pylist()
    return found
