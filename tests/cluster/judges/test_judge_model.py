"""A model folder is judged alike by `milepost doctor`, before a run and wherever the parts are started on one."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from milepost.cluster import preflight
from milepost.cluster.base.exits import ConfigError
from milepost.cluster.doctor import Finding, examine
from milepost.cluster.preflight import check_start, judge_model
from milepost.cluster.runlog.runs import RunFolder
from milepost.cluster.settings.config import RunConfig
from milepost.cluster.system import System
from milepost.envs.scenarios import ScenarioConfig, ScenarioSet
from milepost.learner.first_policy.config import ModelConfig
from tests.families.refused import REFUSED
from tests.families.tiny_models import DROPS_THOUGHTS, FAMILIES, write

Call = Callable[..., tuple[object, str, str]]


def about_the_model(folder: Path) -> Finding:
    config = RunConfig(model=ModelConfig(source="folder", path=str(folder)))
    [found] = [finding for finding in examine(config) if finding.what.startswith("model")]
    return found


def test_a_model_folder_is_looked_at(tiny_policy: Path, tmp_path: Path) -> None:
    found = about_the_model(tiny_policy)
    assert (found.level, found.what) == ("ok", f"model {tiny_policy}: llama, 0.3 M parameters")
    broken = Path(shutil.copytree(tiny_policy, tmp_path / "model"))
    (broken / "tokenizer.json").write_text("{")
    found = about_the_model(broken)
    assert (found.level, found.what) == ("fail", "model.path")
    assert "copy them again" in found.fix


def test_a_folder_that_is_evaluated_or_resumed_from_is_judged_before_anything_starts(
    tiny_policy: Path, tmp_path: Path
) -> None:
    config = RunConfig(env=ScenarioConfig(train_size=4, heldout_size=2))
    system, phases = System(config, RunFolder(tmp_path), ScenarioSet(config.env)), []
    broken = Path(shutil.copytree(tiny_policy, tmp_path / "model"))
    (broken / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        asyncio.run(system.start(broken, 0, learner=None, phase=phases.append))
    assert not phases


def test_a_template_that_rewrites_earlier_turns_is_played_in_and_named_before_a_run(
    tiny_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_policy, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(DROPS_THOUGHTS)
    config = RunConfig.model_validate({"model": {"source": "folder", "path": str(folder)}})
    check_start(config)
    assert f"{folder}: the chat template rewrites earlier turns" in capsys.readouterr().err
    finding = about_the_model(folder)
    assert (finding.level, "prefix_breaks counts them" in finding.fix) == ("warn", True)


def test_only_a_model_that_is_trained_needs_shared_memory(tiny_policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig()
    # 344,704 parameters of 4 bytes, an old and a new version: 2.76 MB
    for free, fits in ((2_800_000, True), (2_700_000, False)):
        room = shutil.disk_usage("/dev/shm")._replace(free=free)
        monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _, room=room: room)
        assert judge_model(config, tiny_policy, trained=False).parameters == 344_704
        if fits:
            judge_model(config, tiny_policy, trained=True)
        else:
            with pytest.raises(ConfigError, match="give the container more"):
                judge_model(config, tiny_policy, trained=True)


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("GPT-Neo, which vLLM has no code for", "names GPTNeoForCausalLM (model type 'gpt_neo'), which the engine"),
        ("RWKV, which has no attention", "names RwkvForCausalLM (model type 'rwkv'), which the engine"),
        ("a configuration that names no architecture", 'lacks "architectures", by which the engine chooses'),
    ],
)
def test_what_the_engine_has_no_code_for_is_refused_by_name_before_anything_starts(
    call: Call, own_folder: Path, what: str, named: str
) -> None:
    model = write(FAMILIES["qwen2"], own_folder / "model")
    dict(REFUSED)[what](model)
    (own_folder / "run.toml").write_text(f'[model]\nsource = "folder"\npath = "{model}"\n')
    code, out, err = call("train", "run.toml")
    assert (code, out) == (2, "")
    assert f"milepost: model: {model / 'config.json'} {named}" in err.splitlines()[-1]
    assert not (own_folder / "runs").exists()
