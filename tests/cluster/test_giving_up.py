"""A run that its watch gives up ends with the code of divergence, and says how to go on from what was saved."""

import asyncio
import os
from pathlib import Path

import pytest
from example_records import iteration_record

from milepost.cluster import config as configs
from milepost.cluster import runs
from milepost.cluster.console import LiveView
from milepost.cluster.exits import Diverged
from milepost.cluster.metrics import Metrics
from milepost.cluster.run import Run
from milepost.envs.scenarios import ScenarioConfig
from milepost.learner.collapse import CollapseConfig


@pytest.mark.parametrize("action", ["stop", "warn"])
def test_a_run_whose_filter_keeps_nothing_is_given_up_only_if_asked(tmp_path: Path, action: str) -> None:
    config = configs.RunConfig(
        env=ScenarioConfig(train_size=4, heldout_size=2), collapse=CollapseConfig(action=action, stop_empty=2)
    )
    folder = runs.create(tmp_path, "empty")
    with Metrics(folder.metrics) as metrics, LiveView(run_id=folder.run_id, iterations=8) as view:
        for iteration in (1, 2):
            metrics.record(iteration_record(iteration, groups_trained=0, groups_filtered=8))
        run = Run(config, folder, view, metrics)  # as after a restart: what was seen is read from the records
        run._version = run._saved = 2
        if action == "warn":
            asyncio.run(run._give_up_on_collapse())
            return
        with pytest.raises(Diverged) as end:
            asyncio.run(run._give_up_on_collapse())
    assert end.value.code == 6
    assert "the filter kept no group for 2 iterations" in str(end.value)
    assert f"the newest checkpoint is of version 2: milepost train --resume {os.path.relpath(folder.path)}" in str(
        end.value
    )
