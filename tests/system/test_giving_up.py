"""What strategies read is measured on the way; a run that cannot learn any more is given up, with everything saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from milepost.learner import checkpoint
from tests.system.driving import Driver, write_config

pytestmark = pytest.mark.services


@pytest.mark.timeout(600)
def test_a_run_whose_filter_keeps_nothing_stops_with_a_checkpoint_and_says_why(
    start: Callable[..., Driver], tmp_path: Path, tiny_policy: Path
) -> None:
    config = write_config(
        tmp_path,
        tiny_policy,
        reward={"path": "tests.coin_env:pay_nothing"},
        env={"path": "tests.coin_env:CoinEnv", "train_size": 2, "heldout_size": 2},
        credit={"strategy": "crbc", "w_step": 0.0, "history_decay": 0.5, "modulators": [{"name": "aem"}]},
        filter={"method": "top_p"},
        collapse={"action": "stop", "stop_empty": 2, "information_every": 1},
    )
    driver = start("train", config)
    assert driver.end(400) == 6, driver.said()
    assert "kept no group" in driver.out.read_text(), driver.said()
    assert f"milepost train --resume {driver.folder.run_id}" in driver.out.read_text()
    records = driver.records()
    assert [record.verdicts["zero_variance"] for record in records] == [4, 4]
    assert all(record.repetition is not None for record in records)
    assert all(record.mutual_information is None for record in records)  # every task asks the same
    saved = checkpoint.newest_valid(driver.folder.checkpoints)
    assert saved is not None
    assert saved.manifest.record.iteration == 2
