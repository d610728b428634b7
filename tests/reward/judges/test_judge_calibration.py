"""Calibration: agreement with people, bias, drift, and what keeps scores from deciding a promotion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from milepost.reward.evaluators.wilson import wilson_interval
from milepost.reward.judges.calibration import Calibration, CalibrationItem, drifted, load_items, measure, unfit
from milepost.reward.judges.config import JudgeConfig, JudgeRefused
from milepost.reward.judges.verdict import Judgement
from tests.reward.judges.judge_rig import judge_config

ITEM: dict[str, Any] = {
    "task": "Find the key.",
    "outcome": "failure",
    "turns": [{"agent": "I look.", "environment": "Nothing."}, {"agent": "I stop."}],
    "labels": {"reasoning_quality": 2},
}


def items(*labels: int) -> list[CalibrationItem]:
    return [CalibrationItem.model_validate(ITEM | {"labels": {"reasoning_quality": label}}) for label in labels]


def given(*scores: float | None) -> list[Judgement]:
    """None stands for one that failed."""
    return [
        Judgement(
            weights_digest="", prompt_sha256="", scores={} if score is None else {"reasoning_quality": score},
            failure="" if score is not None else "late",
        )
        for score in scores
    ]  # fmt: skip


def measured(before: list[Judgement], after: list[Judgement], *labels: int) -> Calibration:
    return measure(items(*labels), judge_config("http://h/v1").criteria, before, after)


def test_agreement_bias_and_drift_by_hand() -> None:
    """Labels 1, 3, 5, 2 of 1 to 5 are 0, 0.5, 1, 0.25."""
    found = measured(given(0.0, 0.5, 0.5, 0.5), given(0.25, 0.5, 1.0, 0.5), 1, 3, 5, 2)
    assert (found.labels, found.compared, found.agreement) == (4, 4, 0.5)
    assert (found.agreement_low, found.agreement_high) == wilson_interval(2, 4)
    assert found.mean_difference == pytest.approx((0 + 0 - 0.5 + 0.25) / 4)
    assert found.drift == pytest.approx((0.25 + 0 + 0.5 + 0) / 4)


def test_what_was_not_judged_is_left_out_and_counted() -> None:
    found = measured(given(None, 0.5), given(0.0, None), 1, 3)
    assert (found.labels, found.compared, found.agreement, found.drift) == (2, 1, 1.0, None)
    nothing = measured(given(None), given(None), 1)
    assert (nothing.compared, nothing.agreement, nothing.agreement_low, nothing.mean_difference) == (
        0,
        None,
        None,
        None,
    )


def test_another_number_of_judgements_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        measured(given(0.0), given(0.0), 1, 2)


def test_what_keeps_scores_from_deciding_a_promotion_is_told() -> None:
    config = judge_config("http://h/v1", max_drift=0.1)
    many = [1] * 100
    sound = measured(given(*[0.0] * 100), given(*[0.1] * 100), *many)
    assert (unfit(config, sound, 0), drifted(config, sound)) == ([], False)
    moved = measured(given(*[0.0] * 100), given(*[0.25] * 100), *many)
    assert drifted(config, moved)
    assert unfit(config, moved, 2) == [
        "2 judgements failed",
        "the judge drifted by 0.250 of its scale, max_drift = 0.1",
    ]
    assert unfit(config, None, 0) == ["there is no calibration file"]
    few = measured(given(0.0), given(None), 1)
    assert unfit(config, few, 0) == [
        "calibration holds 1 labels, fewer than 100",
        "no calibration episode was judged twice, so drift is not known",
    ]


def config_with(folder: Path, *lines: object, **values: Any) -> JudgeConfig:
    path = folder / "calibration.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return judge_config("http://h/v1", calibration=str(path), **values)


def test_items_are_read_as_episodes(tmp_path: Path) -> None:
    [item] = load_items(config_with(tmp_path, ITEM, ""))
    assert [(turn.agent, turn.environment) for turn in item.transcript.turns] == [
        ("I look.", "Nothing."),
        ("I stop.", ""),
    ]
    assert (item.transcript.task, item.transcript.outcome) == ("Find the key.", "failure")
    assert load_items(judge_config("http://h/v1")) == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 1: not valid JSON"),
        (ITEM | {"turns": []}, "line 1: turns: List should have at least 1 item"),
        (ITEM | {"verdict": 5}, "line 1: verdict: unknown key"),
        (ITEM | {"outcome": "won"}, "line 1: outcome: Input should be"),
        (ITEM | {"labels": {"kindness": 2}}, "labels.kindness = 2: the judge scores reasoning_quality (1 to 5)"),
        (ITEM | {"labels": {"reasoning_quality": 6}}, "labels.reasoning_quality = 6: the judge scores"),
        ("", "it holds 0 labels, and needs at least one episode"),
    ],
)
def test_a_calibration_file_that_is_wrong_is_refused_by_its_line(tmp_path: Path, line: object, told: str) -> None:
    with pytest.raises(JudgeRefused) as refused:
        load_items(config_with(tmp_path, line))
    assert told in str(refused.value)


def test_a_judge_of_promotion_grade_needs_a_hundred_labels(tmp_path: Path) -> None:
    assert len(load_items(config_with(tmp_path, *[ITEM] * 100, promotion_grade=True))) == 100
    with pytest.raises(JudgeRefused, match="it holds 99 labels, and needs at least 100"):
        load_items(config_with(tmp_path, *[ITEM] * 99, promotion_grade=True))
