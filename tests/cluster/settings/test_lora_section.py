"""What of `[lora]` contradicts itself or the rest of a configuration."""

from pathlib import Path

import pytest

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.settings.config import config_hash, load, refuse_change


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["lora.alpha=8"],
            "lora: alpha and target_modules have no effect with rank = 0, which trains the whole policy",
        ),
        (
            ["lora.rank=8", 'lora.target_modules=["q_proj", "all-linear"]'],
            "lora: target_modules names 'all-linear' and layers beside it: name the one or the others",
        ),
        (
            ["lora.rank=8", "engine.transfer=nccl"],
            'engine.transfer = "nccl" broadcasts whole weights, and with lora.rank adapters alone travel; leave '
            'engine.transfer out, or set "file" or "object_store"',
        ),
    ],
)
def test_a_contradiction_is_refused_in_one_line(tmp_path: Path, overrides: list[str], line: str) -> None:
    (tmp_path / "run.toml").write_text("")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "run.toml", overrides)
    assert str(caught.value).endswith(f": {line}")
    assert "\n" not in str(caught.value)


def test_a_run_keeps_its_adapters_when_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[lora]\nrank = 8\n")
    began, other = load(tmp_path / "run.toml"), load(tmp_path / "run.toml", ["lora.rank=4"])
    assert (began.lora.scale, other.lora.scale) == (4.0, 8.0)
    assert config_hash(began) != config_hash(other)
    with pytest.raises(ConfigError, match=r"^lora\.rank was 8 and is now 4\n"):
        refuse_change(began, other)
