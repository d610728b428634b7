"""What `milepost doctor` finds about a model folder is what a run would be refused for."""

import shutil
from pathlib import Path

from milepost.cluster.doctor import Finding, examine
from milepost.cluster.settings.config import RunConfig
from milepost.learner.first_policy.model import ModelConfig


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


def test_an_environment_that_would_end_the_program_is_a_finding() -> None:
    for where in ("constructor", "close"):
        env = {"path": "tests.actors.checked_envs:Leaves", "options": {"where": where, "error": "SystemExit"}}
        findings = examine(RunConfig.model_validate({"env": env}))
        [found] = [finding for finding in findings if "Leaves" in finding.what]
        assert (found.level, "SystemExit: out" in found.what) == ("fail", True)
