"""Environments with tools, judged alike by check-env, by the check before a run and by a run's episode."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from milepost.actors.checks.check import check_env
from milepost.cluster.base.exits import ConfigError
from milepost.cluster.preflight import check_dialogue, check_world
from milepost.cluster.settings.config import RunConfig
from milepost.cluster.settings.credit_basis import credit_basis
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Task
from tests.cluster.judges.test_three_judges import judged
from tests.families.chat_templates import family_tokenizer

HERE, DESK = "tests.actors.tools.tool_envs", "examples.sql_desk:SqlDesk"


@pytest.fixture
def policy(tiny_policy: Path, tmp_path: Path) -> Path:
    """A folder with the tokenizer and template of Qwen 2.5."""
    folder = Path(shutil.copytree(tiny_policy, tmp_path / "model"))
    family_tokenizer("qwen2.5").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("path", [DESK, f"{HERE}:Door", f"{HERE}:Talks"])
def test_an_environment_that_speaks_in_messages_is_fine_with_all_three(path: str, policy: Path) -> None:
    assert judged(path, {}, policy, Dialogue(family_tokenizer("qwen2.5"))) == ("", "", "")


def test_a_result_that_would_forge_a_turn_is_refused_by_both_that_call_tools(policy: Path) -> None:
    verdicts = judged(f"{HERE}:Parrot", {}, policy, Dialogue(family_tokenizer("qwen2.5")))
    assert ["control token of the" in verdict for verdict in verdicts[:2]] == [True] * 2, verdicts


def test_a_desk_passes_check_env_without_a_warning() -> None:
    assert {finding.level for finding in check_env(DESK).findings} == {"ok"}


def test_calls_that_no_author_thinks_of_are_made() -> None:
    (error,) = [finding for finding in check_env(f"{HERE}:Indexes").findings if finding.level == "error"]
    assert "step raised KeyError" in error.what


def test_a_template_without_tools_is_refused_before_a_run_with_what_to_do(tiny_policy: Path) -> None:
    config = RunConfig.model_validate({"env": {"path": DESK}, "model": {"source": "folder", "path": str(tiny_policy)}})
    with pytest.raises(
        ConfigError, match=r"does not show 'tables' as it is, .* use a template that shows .* the tools"
    ):
        check_dialogue(config, tiny_policy, check_world(config))


def test_a_parser_that_does_not_fit_the_template_is_refused_before_a_run(policy: Path) -> None:
    model = {"source": "folder", "path": str(policy)}
    actors = {"tool_parser": "llama3_json"}
    config = RunConfig.model_validate({"env": {"path": DESK}, "model": model, "actors": actors})
    with pytest.raises(ConfigError, match=r"actors.tool_parser = 'llama3_json' does not read the call"):
        check_dialogue(config, policy, check_world(config))


def test_what_credit_goes_by_is_told_for_tools_too() -> None:
    config = RunConfig.model_validate({"env": {"path": DESK}})
    told = credit_basis(config, Task(env=DESK, seed=0, split="train"), seconds=5)
    assert told == "credit: success as the environment reports it"
