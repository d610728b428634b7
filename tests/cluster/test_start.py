"""What a resumed run starts from where its checkpoints are not what they were."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from milepost.cluster.base.exits import DependencyLost
from milepost.cluster.runlog import runs
from milepost.cluster.runlog.runs import RunFolder, Status
from milepost.cluster.settings.config import RunConfig
from milepost.cluster.start import start_of
from milepost.learner.first_policy.config import ModelConfig


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = runs.create(tmp_path, "emptied")
    made.write_status(Status(pid=1, phase="training", iteration=12))
    return made


def notes_of_a_resumption(folder: RunFolder, policy: Path) -> list[str]:
    reporter = Mock()
    start = start_of(RunConfig(model=ModelConfig(source="folder", path=str(policy))), folder, reporter, resume=True)
    assert start.iteration == 0
    return [call.args[0] for call in reporter.note.call_args_list]


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again_silently(folder: RunFolder, tiny_policy: Path) -> None:
    folder.keep_policy(tiny_policy, 10)
    with pytest.raises(DependencyLost, match=r"checkpoints is empty, though a checkpoint was written: restore it"):
        notes_of_a_resumption(folder, tiny_policy)


def test_a_run_that_ended_before_its_first_checkpoint_says_that_it_begins_again(
    folder: RunFolder, tiny_policy: Path
) -> None:
    assert notes_of_a_resumption(folder, tiny_policy) == [
        "12 iterations were done and no checkpoint was written: beginning again"
    ]
