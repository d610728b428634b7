"""One run on three environments, of which one breaks down on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from milepost.cluster.runlog.records import evals, read_records
from tests.system.driving import START_S, Driver, write_config

pytestmark = pytest.mark.services
Start = Callable[..., Driver]
_ITERATIONS = 10


def environments(outage: Path) -> list[dict[str, Any]]:
    coin = {"path": "tests.coin_env:CoinEnv", "train_size": 64, "heldout_size": 16}
    return [
        coin | {"name": "long", "share": 2.0, "options": {"delay_s": 0.03}},
        coin | {"name": "short", "curriculum": "success", "options": {"turns": 2, "delay_s": 0.03}},
        coin | {"name": "shop", "path": "tests.served_env:ServedCoinEnv", "options": {"outage": str(outage)}},
    ]


@pytest.mark.timeout(720)
def test_an_environment_that_breaks_down_is_named_and_the_others_train_on_by_their_shares(
    tmp_path: Path, tiny_policy: Path, start: Start
) -> None:
    outage = tmp_path / "away"
    run = {"iterations": _ITERATIONS, "eval_episodes": 6, "eval_splits": ["heldout"]}
    config = write_config(
        tmp_path, tiny_policy, run=run, env=environments(outage), actors={"give_up_after_s": 3, "concurrent_groups": 6}
    )
    driver = start("train", config)
    driver.wait_for_iteration(1, START_S)
    outage.touch()
    assert driver.end(START_S) == 0, driver.said()
    assert driver.left(deadline_s=10) == []

    records = driver.records()
    assert [record.iteration for record in records] == list(range(1, _ITERATIONS + 1))
    groups = {
        name: sum(r.envs[name].groups_trained + r.envs[name].groups_filtered for r in records if name in r.envs)
        for name in ("long", "short", "shop")
    }
    assert sum(groups.values()) == 4 * _ITERATIONS
    assert abs(groups["long"] - 2 * groups["short"]) <= 6, groups
    assert groups["shop"] < groups["short"], groups
    failed = [
        record.envs["shop"] for record in records if "shop" in record.envs and record.envs["shop"].episodes_failed
    ]
    assert {part.first_error for part in failed} == {"env: ConnectionError: the service is away"}
    assert all(not part.episodes_failed for r in records for name, part in r.envs.items() if name != "shop")
    said = "environment shop does nothing but fail:"
    assert driver.out.read_text().count(said) == 1, driver.said()

    before, after = evals(read_records(driver.folder.metrics), "heldout")
    assert {name: part.episodes for name, part in before.envs.items()} == {"long": 6, "short": 6, "shop": 6}
    assert {name: part.episodes for name, part in after.envs.items()} == {"long": 6, "short": 6}
    assert after.failed == {
        "shop": "6 of 6 evaluation episodes failed; the first in env: ConnectionError: the service is away"
    }
    assert "Success by environment" in driver.folder.report.read_text()
