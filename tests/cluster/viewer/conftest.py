"""The runs that the viewer's tests look at: made once, and only read."""

from pathlib import Path

import pytest

from milepost.envs.dialogue import Dialogue
from tests.cluster.viewer.viewed_run import write_runs


@pytest.fixture(scope="session")
def viewed_runs(dialogue: Dialogue, tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs."""
    return write_runs(tmp_path_factory.mktemp("viewed") / "runs", dialogue, tiny_policy)
