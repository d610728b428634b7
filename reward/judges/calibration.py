"""Episodes that people scored: how far a judge agrees with them, and whether it changed while it judged.

They are judged before the episodes that count and again after them. Agreement is that of the first time; drift is what
the second time changed. Not promised: that a judge which agrees here agrees on other kinds of episodes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from milepost.envs.types import Outcome
from milepost.reward.evaluators.wilson import wilson_interval
from milepost.reward.judges.config import Criterion, JudgeConfig, JudgeRefused, complaints, read_text
from milepost.reward.judges.quoting import Transcript, TranscriptTurn
from milepost.reward.judges.verdict import Judgement

FEWEST_LABELS: Final = 100
"""By which a judge is calibrated that may decide a promotion."""
_ROUNDING = 1e-9


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    agent: str
    environment: str = ""


class CalibrationItem(BaseModel):
    """One line of a calibration file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    task: str
    outcome: Outcome
    turns: list[_Turn] = Field(min_length=1)
    labels: dict[str, int] = Field(min_length=1)
    """Criterion -> the score that people gave."""

    @property
    def transcript(self) -> Transcript:
        """As a judge is shown it."""
        turns = tuple(TranscriptTurn(agent=turn.agent, environment=turn.environment) for turn in self.turns)
        return Transcript(task=self.task, outcome=self.outcome, turns=turns)


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What calibration showed. Differences are shares of the scale; None where nothing could be compared."""

    labels: int
    """Scores by people, over all criteria."""
    compared: int
    """Of these, how many the judge gave a score for the first time."""
    agreement: float | None
    """Share of those that are the same as people's."""
    agreement_low: float | None
    agreement_high: float | None
    """95 % Wilson interval."""
    mean_difference: float | None
    """Of the judge less people: what it is too kind."""
    drift: float | None
    """Mean of what the second time changed, without its sign."""


def load_items(config: JudgeConfig) -> list[CalibrationItem]:
    """The calibration file of a judge, empty where it names none. Raises JudgeRefused: file, line, reason."""
    if not config.calibration:
        return []
    path = Path(config.calibration)
    lines = [(number, line) for number, line in enumerate(read_text(path).splitlines(), start=1) if line.strip()]
    items = [_item(f"{path}: line {number}", line, config) for number, line in lines]
    labels = sum(len(item.labels) for item in items)
    if not items or (config.promotion_grade and labels < FEWEST_LABELS):
        wanted = f"{FEWEST_LABELS} labels, since promotion_grade = true" if config.promotion_grade else "one episode"
        raise JudgeRefused(f"{path}: it holds {labels} labels, and needs at least {wanted}")
    return items


def _item(where: str, line: str, config: JudgeConfig) -> CalibrationItem:
    try:
        item = CalibrationItem.model_validate(json.loads(line))
    except ValidationError as error:
        raise JudgeRefused("\n".join(complaints(error, where))) from error
    except (ValueError, RecursionError) as error:
        raise JudgeRefused(f"{where}: not valid JSON: {error}") from error
    for name, score in item.labels.items():
        criterion = config.criteria.get(name)
        if criterion is None or not criterion.low <= score <= criterion.high:
            known = ", ".join(f"{key} ({c.low} to {c.high})" for key, c in config.criteria.items())
            raise JudgeRefused(f"{where}: labels.{name} = {score}: the judge scores {known}")
    return item


def measure(
    items: Sequence[CalibrationItem],
    criteria: Mapping[str, Criterion],
    before: Sequence[Judgement],
    after: Sequence[Judgement],
) -> Calibration:
    """What the judgements of all items show, those of the first time and of the second.

    Raises ValueError for another number of judgements than of items.
    """
    pairs = list(_pairs(items, criteria, before))
    same = sum(abs(judged - by_people) < _ROUNDING for judged, by_people in pairs)
    interval = wilson_interval(same, len(pairs)) if pairs else (None, None)
    changes = [
        abs(second.scores[name] - score)
        for first, second in zip(before, after, strict=True)
        for name, score in first.scores.items()
        if name in second.scores
    ]
    return Calibration(
        labels=sum(len(item.labels) for item in items),
        compared=len(pairs),
        agreement=same / len(pairs) if pairs else None,
        agreement_low=interval[0],
        agreement_high=interval[1],
        mean_difference=math.fsum(judged - by_people for judged, by_people in pairs) / len(pairs) if pairs else None,
        drift=math.fsum(changes) / len(changes) if changes else None,
    )


def _pairs(
    items: Sequence[CalibrationItem], criteria: Mapping[str, Criterion], judgements: Sequence[Judgement]
) -> Iterator[tuple[float, float]]:
    """Score of the judge and of people, of every label that was judged."""
    for item, judgement in zip(items, judgements, strict=True):
        for name, label in item.labels.items():
            if name in judgement.scores:
                yield judgement.scores[name], criteria[name].share(label)


def drifted(config: JudgeConfig, calibration: Calibration | None) -> bool:
    """Whether the judge changed by more than it may while it judged."""
    return calibration is not None and calibration.drift is not None and calibration.drift > config.max_drift


def unfit(config: JudgeConfig, calibration: Calibration | None, failed: int) -> list[str]:
    """Why the scores of a judge may not decide a promotion; empty where they may."""
    reasons = [f"{failed} judgements failed"] if failed else []
    if calibration is None:
        return [*reasons, "there is no calibration file"]
    if calibration.labels < FEWEST_LABELS:
        reasons.append(f"calibration holds {calibration.labels} labels, fewer than {FEWEST_LABELS}")
    if calibration.drift is None:
        reasons.append("no calibration episode was judged twice, so drift is not known")
    elif drifted(config, calibration):
        reasons.append(f"the judge drifted by {calibration.drift:.3f} of its scale, max_drift = {config.max_drift:g}")
    return reasons
