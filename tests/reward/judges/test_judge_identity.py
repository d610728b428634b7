"""A judge is the one that its file pins, or it is refused: weights, prompt, family, and what its server serves."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from milepost.reward.judges.config import JudgeConfig, JudgeRefused, load_config
from milepost.reward.judges.identity import JudgeAway, family_of, model_type, verify
from tests.reward.judges.judge_rig import MODEL, WEIGHTS, judge_config, serving, verdict, write_judge

OTHER = "d1" * 32


def check(config: JudgeConfig, *, policy: str = "llama", weights: str = WEIGHTS) -> None:
    asyncio.run(verify(config, policy, lambda _: weights))


def model_folder(path: Path, **config: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def with_weights(url: str, folder: Path, **values: Any) -> JudgeConfig:
    return judge_config(url, weights=str(folder), family="", **values)


def test_a_judge_that_is_as_it_is_pinned_is_taken(tmp_path: Path) -> None:
    with serving(verdict) as served:
        check(judge_config(served.url))
        folder = model_folder(tmp_path / "judge", model_type="mistral")
        served.entry["root"] = str(folder)
        check(with_weights(served.url, folder))


def test_weights_that_are_others_than_the_pinned_ones_are_refused_naming_both(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "judge", model_type="mistral")
    with pytest.raises(JudgeRefused, match=f"weights_digest: the file pins {WEIGHTS}, found is {OTHER}: another judge"):
        check(with_weights("http://h/v1", folder), weights=OTHER)


def test_a_prompt_that_is_another_than_the_pinned_one_is_refused_naming_both() -> None:
    config = judge_config("http://h/v1")
    changed = config.model_copy(update={"prompt": "You are kind."})
    with pytest.raises(
        JudgeRefused, match=f"prompt_sha256: the file pins {config.prompt_sha256}, found is [0-9a-f]{{64}}"
    ):
        check(changed)


def test_missing_pins_are_told_with_what_to_write(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "judge", model_type="mistral")
    config = with_weights("http://h/v1", folder)
    with pytest.raises(JudgeRefused) as refused:
        check(config.model_copy(update={"weights_digest": "", "prompt_sha256": ""}), weights=OTHER)
    first, second = str(refused.value).splitlines()
    assert first == f'judge tester: weights_digest: not pinned; once you trust it, write weights_digest = "{OTHER}"'
    assert second.endswith(f'prompt_sha256 = "{config.prompt_sha256}"')
    with pytest.raises(JudgeRefused, match="there is no folder to hash: declare the digest"):
        check(judge_config("http://h/v1", weights_digest=""))


@pytest.mark.parametrize(
    ("judge", "policy", "same"),
    [
        ("qwen3", "qwen2", True),
        ("qwen3_moe", "qwen2_5_vl", True),
        ("llama", "Llama4_text", True),
        ("mistral", "llama", False),
        ("gemma3_text", "qwen3", False),
    ],
)
def test_a_judge_of_the_policys_family_is_refused_unless_that_is_allowed(judge: str, policy: str, same: bool) -> None:
    with serving(verdict) as served:
        check(judge_config(served.url, family=judge, allow_same_family=True), policy=policy)
        if not same:
            check(judge_config(served.url, family=judge), policy=policy)
            return
        with pytest.raises(JudgeRefused, match=f"it is a {judge} and the policy a {policy}, of one family"):
            check(judge_config(served.url, family=judge), policy=policy)


def test_the_family_is_that_of_the_weights_where_there_is_a_folder(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "judge", model_type="gemma3_text")
    assert family_of(with_weights("http://h/v1", folder)) == "gemma3_text"
    assert family_of(judge_config("http://h/v1", family="qwen3")) == "qwen3"
    with pytest.raises(JudgeRefused, match="tells no model_type"):
        model_type(tmp_path / "nothing")


def says(**entry: Any) -> Any:
    return lambda served: served.entry.update(entry)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (says(id="other"), f"the server has no {MODEL!r}, but other"),
        (says(digest=f"sha256:{OTHER}"), f"the file pins {WEIGHTS}, the server tells sha256:{OTHER}"),
        (says(root="/models/else"), "the server says that it serves '/models/else', not"),
        (says(root=None), "the server says that it serves None, not"),
    ],
)
def test_a_server_that_serves_another_model_is_refused(tmp_path: Path, change: Any, told: str) -> None:
    folder = model_folder(tmp_path / "judge", model_type="mistral")
    with serving(verdict) as served:
        served.entry["root"] = str(folder)
        change(served)
        with pytest.raises(JudgeRefused) as refused:
            check(with_weights(served.url, folder))
    assert told in str(refused.value)


def test_a_digest_that_the_server_tells_and_that_is_the_pinned_one_is_taken() -> None:
    with serving(verdict) as served:
        served.entry["digest"] = f"sha256:{WEIGHTS}"
        check(judge_config(served.url))


def test_a_server_that_is_away_is_said_to_be() -> None:
    with pytest.raises(JudgeAway, match=r"http://127\.0\.0\.1:9/v1/models"):
        check(judge_config("http://127.0.0.1:9/v1"))


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('name = "tester"', 'nmae = "tester"', "nmae: unknown key"),
        ("retries = 0", "retries = -1", "retries: Input should be greater than or equal to 0"),
        ("retries = 0", 'retries = "0"', "retries: Input should be a valid integer"),
        ("retries = 0", "retries = 0\ntemperature = 1", "temperature: unknown key"),
        ('base_url = "http://', 'base_url = "ftp://', "base_url: 'ftp://"),
        ('base_url = "http://', 'base_url = "http://me:secret@', "a key does not stand in a file"),
        ('prompt = "You judge how well an agent reasons."', "", "give prompt or prompt_file, one of them"),
        ('prompt = "You judge how well an agent reasons."', 'prompt_file = "none.txt"', "No such file or directory"),
        ('family = "mistral"', "", "give weights, a folder, or family"),
        ('weights_digest = "', 'weights_digest = "x', "weights_digest: String should match pattern"),
        ("[criteria.reasoning_quality]", "[criteria.Copy]", "criteria.Copy.[key]: String should match pattern"),
        ("[criteria.reasoning_quality]", "[criteria.copy]", "criteria: copy is taken"),
        ("ask =", "low = 5\nask =", "low = 5 is not below high = 5"),
        ("retries = 0", "promotion_grade = true", "promotion_grade = true needs a calibration file"),
        ("retries = 0", "retries = ", "not valid TOML"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_its_key(tmp_path: Path, before: str, after: str, told: str) -> None:
    path = write_judge(tmp_path, "http://h/v1")
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(JudgeRefused) as refused:
        load_config(path)
    assert told in str(refused.value)
    assert "secret" not in str(refused.value)


def test_files_are_found_beside_the_judges_own(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("You judge how well an agent reasons.\n")
    path = write_judge(tmp_path, "http://h/v1")
    path.write_text(
        path.read_text().replace('prompt = "You judge how well an agent reasons."', 'prompt_file = "prompt.txt"')
    )
    config = load_config(path)
    with serving(verdict) as served:
        check(config.model_copy(update={"base_url": served.url}))  # its prompt has the pinned digest
