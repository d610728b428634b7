"""The alerts over real runs that were recorded: a collapse fires the echo trap, good runs fire nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.monitoring.promtool import needs_promtool, require_firing
from tests.monitoring.replay import replayed

MEASUREMENTS = Path(__file__).parents[2] / "docs" / "measurements"
GOOD = [
    "20261127-162247-credit/20261127-163010-frozenlake-crbc-0",
    "20261127-162247-credit/20261127-180448-keydoor-crbc-2",
    "20261127-170315-bandit/20261127-171601-bandit-gigpo-1",
    "20261127-181602-slippery/20261127-183945-slippery-crbc-0",
]
"""One of each task that was measured; two of them end nearly solved."""
COLLAPSED = "20261128-014614-collapse"
"""No filter, clip_high = clip_low, fifteen times the rate: in iteration 12 the policy begins to say one thing only."""
pytestmark = needs_promtool


@pytest.mark.parametrize("run", GOOD)
def test_a_recorded_run_that_learns_fires_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str) -> None:
    series = replayed(MEASUREMENTS / run / "metrics.jsonl", monkeypatch)
    assert len(series["milepost_reward_within_group_std"].split()) >= 10
    require_firing(tmp_path, series, {minute: set() for minute in range(0, 31, 3)})


def test_a_recorded_collapse_fires_the_echo_trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = replayed(MEASUREMENTS / COLLAPSED / "metrics.jsonl", monkeypatch)
    stuck = {"MilepostEchoTrap", "MilepostNothingToCompare"}
    require_firing(tmp_path, series, {10: set(), 25: {"MilepostEchoTrap"}, 38: stuck})
