"""The size of a model, read off its configuration."""

from pathlib import Path

import pytest

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.placement.size import size_of_folder
from milepost.learner.lora import LoraConfig


def test_a_folder_without_a_configuration_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model\.path: the size of .* cannot be read off its config\.json") as error:
        size_of_folder(tmp_path, LoraConfig())
    assert "\n" not in str(error.value)
