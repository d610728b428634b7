"""Rollouts that teach nothing, told while they are played and at a run's end, with the setting to look at.

Signs are that most responses are cut at their length limit, that most episodes end because the context is full, and
that most turns hold no valid action; worst is an iteration of which the filter kept no group, for it makes no update.
All of it follows from the records. It says what was measured, and does not know why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from milepost.cluster.runlog.records import EvalRecord, IterationRecord, Number

MOSTLY: Final = 0.5
"""A sign is a share above this."""
_AT_THE_END: Final = 10
"""Iterations that the last word is about: a policy may have learnt to be brief."""
_DROPPED: Final = {
    "zero_variance": "nothing to compare, their returns are equal",
    "low_score": "a filter.score below that of others",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a response and an episode, in tokens: `sampling.max_tokens` and `engine.max_model_len`."""

    max_tokens: int
    max_model_len: int


class WastedRollouts:
    """Says every sign once, when it first holds, and iterations without an update after 1, 2, 4, 8 ... in a row."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._told: set[str] = set()
        self._empty = 0

    def evaluation(self, record: EvalRecord) -> list[str]:
        """What is new to say after an evaluation."""
        return self._news([record])

    def iteration(self, record: IterationRecord) -> list[str]:
        """What is new to say after an iteration."""
        self._empty = 0 if record.groups_trained else self._empty + 1
        is_due = self._empty > 0 and self._empty & (self._empty - 1) == 0
        in_a_row = f", {self._empty} iterations in a row" if self._empty > 1 else ""
        return ([f"no update was made{in_a_row}: {_dropped([record])}"] if is_due else []) + self._news([record])

    def _news(self, records: Sequence[EvalRecord | IterationRecord]) -> list[str]:
        found = {sign: text for sign, text in _signs(records, self._limits).items() if sign not in self._told}
        self._told |= found.keys()
        return list(found.values())


def last_word(done: Sequence[IterationRecord], limits: Limits) -> list[str]:
    """The signs that hold at the end of a run whose iterations are `done`."""
    return list(_signs(done[-_AT_THE_END:], limits).values())


def nothing_learnt(done: Sequence[IterationRecord], limits: Limits) -> str | None:
    """Why none of the iterations made an update; None where one did, and where there are none.

    >>> nothing_learnt([], Limits(max_tokens=16, max_model_len=1024)) is None
    True
    """
    if not done or any(record.groups_trained for record in done):
        return None
    success = [record.success for record in done if record.success is not None]
    told = [
        f"none of the {len(done)} iterations made an update: {_dropped(done)}",
        *([f"success was {fmean(success):.1%}"] if success else []),
        *last_word(done, limits),
        "the policy is the one that the run began with",
    ]
    return "; ".join(told)


def _dropped(done: Sequence[IterationRecord]) -> str:
    counts = Counter[str]()
    for record in done:
        counts.update(record.verdicts)
    groups = sum(record.groups_filtered for record in done)
    reasons = ", ".join(f"{_DROPPED[reason]}: {counts[reason]}" for reason in _DROPPED if counts[reason])
    return f"the filter dropped all {groups} groups" + (f" ({reasons})" if reasons else "")


def _signs(records: Sequence[EvalRecord | IterationRecord], limits: Limits) -> dict[str, str]:
    cut, full, invalid = (
        _mean([getattr(record, name) for record in records])
        for name in ("cut_share", "context_full_share", "invalid_share")
    )
    found = {}
    if cut > MOSTLY:
        found["cut"] = f"{cut:.1%} of the responses were cut at sampling.max_tokens = {limits.max_tokens}: raise it"
    if full > MOSTLY:
        found["full"] = (
            f"{full:.1%} of the episodes ended because their next prompt and sampling.max_tokens = {limits.max_tokens} "
            f"exceed engine.max_model_len = {limits.max_model_len}: raise that, set actors.window_turns, or shorten "
            "observations"
        )
    if invalid > MOSTLY:
        found["invalid"] = (
            f"{invalid:.1%} of the turns held no valid action: compare what the policy says with what the environment "
            "reads"
        )
    return found


def _mean(shares: Sequence[Number]) -> float:
    measured = [share for share in shares if share is not None]
    return fmean(measured) if measured else 0.0
