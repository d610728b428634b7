"""The model section of a configuration becomes a folder, or one clear line."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from milepost.envs.scenarios import ScenarioConfig
from milepost.learner.first_policy import model as model_module
from milepost.learner.first_policy.config import ModelConfig, ResponseLimits
from milepost.learner.first_policy.model import resolve
from milepost.learner.first_policy.model_check import ModelError

LIMITS = ResponseLimits(max_tokens=8, max_turns=6, temperature=1.0)


def test_a_folder_of_the_user_is_taken_as_it_is(tiny_policy: Path, tmp_path: Path) -> None:
    config = ModelConfig(source="folder", path=str(tiny_policy))
    assert resolve(config, ScenarioConfig(), tmp_path / "cache", LIMITS) == tiny_policy
    assert not (tmp_path / "cache").exists()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    config = ModelConfig(source="folder", path=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=r"no folder .*nowhere; set model\.path"):
        resolve(config, ScenarioConfig(), tmp_path, LIMITS)


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ([], "config.json, a tokenizer .* weights"),
        (["config.json", "model.safetensors"], "lacks a tokenizer"),
        (["tokenizer.json", "model.safetensors"], "lacks config.json"),
        (["config.json", "tokenizer.json", "pytorch_model.bin"], "pickled weights are refused"),
    ],
)
def test_an_incomplete_folder_is_refused_with_what_it_lacks(tmp_path: Path, present: list[str], missing: str) -> None:
    for name in present:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=missing):
        resolve(ModelConfig(source="folder", path=str(tmp_path)), ScenarioConfig(), tmp_path, LIMITS)


def test_the_source_decides_who_makes_the_model(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(model_module, "warm_up", lambda *_: asked.append("warmup") or tiny_policy)
    monkeypatch.setattr(model_module, "convert", lambda *_: asked.append("smollm2") or tiny_policy)
    for source in ("warmup", "smollm2"):
        assert resolve(ModelConfig(source=source), ScenarioConfig(), tmp_path, LIMITS) == tiny_policy
    assert asked == ["warmup", "smollm2"]


def test_a_path_without_the_source_folder_is_refused_and_the_other_way_round() -> None:
    with pytest.raises(ValidationError, match='path is set, but source is "warmup"'):
        ModelConfig(path="somewhere")
    with pytest.raises(ValidationError, match='source = "folder" needs path'):
        ModelConfig(source="folder")
