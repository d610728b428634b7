"""docs/judges.md: its file is a judge, its keys are all there are, its calibration line is one."""

from __future__ import annotations

import re
from pathlib import Path

from milepost.reward.judges.calibration import load_items
from milepost.reward.judges.config import JudgeConfig, load_config

DOCS = (Path(__file__).resolve().parents[3] / "docs" / "judges.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    return re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)[0]


def test_the_judge_and_the_calibration_of_the_docs_are_read(tmp_path: Path) -> None:
    (tmp_path / "judge.toml").write_text(block("toml"), encoding="utf-8")
    (tmp_path / "calibration.jsonl").write_text(block("json"), encoding="utf-8")
    config = load_config(tmp_path / "judge.toml")
    [item] = load_items(config)
    assert config.weights == str(tmp_path / "models" / "Mistral-7B-Instruct")
    assert item.labels == {"reasoning_quality": 1}


def test_the_table_of_keys_names_every_key_and_its_default() -> None:
    rows = re.findall(r"^\| (`.*?`) \|(.*?)\|", DOCS.partition("| key | default |")[2].partition("\n\n")[0], re.M)
    told = {
        key: default
        for keys, defaults in rows
        for key, default in zip(re.findall(r"`(\w+)`", keys), [*defaults.strip().split(", "), ""], strict=False)
    }
    assert told.keys() == JudgeConfig.model_fields.keys()
    for key, default in told.items():
        known = JudgeConfig.model_fields[key].get_default()
        if default and default != "none":
            assert default == (str(known).lower() if isinstance(known, bool) else f"{known:g}"), key
