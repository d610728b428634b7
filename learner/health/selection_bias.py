"""Selection bias: whether what is trained on still looks like what was generated.

Filters, staleness, failures and deadlines drop episodes, and long or slow ones go first. The meter keeps the facts of
the most recent groups with the fate of each episode and compares the trained ones with all of them: length, turns,
seconds, reward and cohort. It measures; it corrects nothing and forgets at a restart. A filter that drops groups whose
rewards are all equal moves the reward by design, and the meter says so too.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from milepost.envs.types import Failure, Group

Floats = NDArray[np.float64]
Measure = Literal["length", "turns", "seconds", "reward"]
MEASURES: tuple[Measure, ...] = get_args(Measure)

TRAINED: Final = "trained"
"""The fate of an episode that an optimizer step used; every other fate is the reason it was dropped for."""
SURE: Final = 4.0
"""Standard errors between trained and dropped episodes from which their difference is no accident: the meter looks
after every iteration and at several fields, so the usual 2 would cry wolf."""

_UNITS: dict[Measure, str] = {"length": " tokens", "turns": " turns", "seconds": " s", "reward": ""}


class SelectionBiasConfig(BaseModel):
    """Selection bias: when trained episodes differ too much from generated ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    window_groups: int = Field(256, ge=2, description="Window in groups: the most recent ones that are compared")
    min_groups: int = Field(
        16,
        ge=2,
        description="Minimum sample size: groups with trained and groups with dropped episodes below which "
        "nothing is said",
    )
    max_shift: float = Field(
        0.25,
        gt=0,
        description="Standardised mean difference of trained from all generated episodes above which a warning "
        "comes, in standard deviations",
    )
    max_cohort_distance: float = Field(
        0.15,
        gt=0,
        le=1,
        description="Total variation distance of the cohorts above which a warning comes: the share of episodes "
        "that would have to change theirs",
    )


@dataclass(frozen=True, slots=True)
class EpisodeFacts:
    """What is known of an episode; None for what is not, which leaves it out of that comparison only."""

    cohort: str
    """Empty where there is none."""
    length: float | None = None
    """Tokens the policy sampled."""
    turns: float | None = None
    seconds: float | None = None
    reward: float | None = None


@dataclass(frozen=True, slots=True)
class Shift:
    """Standardised mean difference: how far trained episodes are from generated ones in one field."""

    field: Measure | Literal["cohort"]
    generated: float
    """Mean over all generated episodes; for cohorts, the share of `cohort`."""
    trained: float
    size: float
    """(trained - generated) / standard deviation of generated; for cohorts, the total variation distance."""
    certainty: float
    """|trained - dropped| in standard errors; infinite where neither varies and they differ."""
    reason: str
    """The drop reason that moved the mean most."""
    dropped: int
    """Episodes dropped for `reason`."""
    episodes: int
    """Generated episodes with the field known."""
    cohort: str | None = None
    """The cohort whose share changed most."""


def facts_of(group: Group, fate: str) -> list[tuple[EpisodeFacts, str]]:
    """The records of a group whose trajectories share one fate: `TRAINED` or the reason they were dropped for."""
    return [
        (EpisodeFacts(t.cohort_name, t.num_tokens, len(t.turns), t.seconds, t.reward), fate) for t in group.trajectories
    ]


def facts_of_failure(failure: Failure, fate: str) -> tuple[EpisodeFacts, str]:
    """The record of an episode that could not be finished: its length, seconds and reward are not known."""
    return EpisodeFacts(failure.cohort_name, turns=failure.turn), fate


class SelectionBias:
    """Records of the most recent groups. Holds at most `window_groups` groups; nothing else grows."""

    def __init__(self, config: SelectionBiasConfig) -> None:
        self._config = config
        self._groups: deque[tuple[tuple[EpisodeFacts, str], ...]] = deque(maxlen=config.window_groups)
        self._warned: set[str] = set()

    def add(self, records: Sequence[tuple[EpisodeFacts, str]]) -> None:
        """The episodes of one more group, each with its fate. A group of no episode changes nothing."""
        if records:
            self._groups.append(tuple(records))

    def shifts(self) -> list[Shift]:
        """One per field for which enough groups were trained on and enough dropped; cohorts only where there are any.

        The unit of chance is the group, since its episodes share a task and mostly a fate: standard errors are
        cluster-robust (Liang & Zeger 1986), so random dropping of whole groups is not taken for bias. The size of a
        shift is a standardised mean difference, for which 0.25 is the customary limit of balance (Stuart 2010).
        """
        rows = [
            (number, facts, fate == TRAINED, fate) for number, group in enumerate(self._groups) for facts, fate in group
        ]
        found: list[Shift | None] = []
        for measure in MEASURES:
            known = [(n, value, t, fate) for n, facts, t, fate in rows if (value := _value(facts, measure)) is not None]
            found.append(self._shift(measure, known))
        found.append(self._cohort_shift([(n, facts.cohort, t, fate) for n, facts, t, fate in rows]))
        return [shift for shift in found if shift is not None]

    def warnings(self) -> list[str]:
        """One line for each field that has parted since the last call; a field that came back may part again."""
        parted = {shift.field: shift for shift in self.shifts() if self._is_parted(shift)}
        news = [_text(shift) for field, shift in parted.items() if field not in self._warned]
        self._warned = set(parted)
        return news

    def _is_parted(self, shift: Shift) -> bool:
        limit = self._config.max_cohort_distance if shift.field == "cohort" else self._config.max_shift
        return abs(shift.size) > limit and shift.certainty > SURE

    def _shift(self, measure: Measure, rows: Sequence[tuple[int, float, bool, str]]) -> Shift | None:
        if not self._is_enough([(number, trained) for number, _, trained, _ in rows]):
            return None
        values = np.array([value for _, value, _, _ in rows], dtype=np.float64)
        trained = np.array([t for _, _, t, _ in rows], dtype=np.bool_)
        clusters = np.array([number for number, _, _, _ in rows], dtype=np.int64)
        spread = float(values.std())
        moved = float(values[trained].mean() - values.mean())
        reason, dropped = _culprit(values, [fate for _, _, _, fate in rows], moved)
        return Shift(
            field=measure,
            generated=float(values.mean()),
            trained=float(values[trained].mean()),
            size=moved / spread if spread > 0 else 0.0,
            certainty=standard_errors(values, trained, clusters),
            reason=reason,
            dropped=dropped,
            episodes=len(rows),
        )

    def _cohort_shift(self, rows: Sequence[tuple[int, str, bool, str]]) -> Shift | None:
        has_cohorts = any(cohort for _, cohort, _, _ in rows)
        if not has_cohorts or not self._is_enough([(number, trained) for number, _, trained, _ in rows]):
            return None
        trained = np.array([t for _, _, t, _ in rows], dtype=np.bool_)
        clusters = np.array([number for number, _, _, _ in rows], dtype=np.int64)
        is_in = {c: np.array([c == other for _, other, _, _ in rows], np.float64) for c in {row[1] for row in rows}}
        gaps = {cohort: float(x[trained].mean() - x.mean()) for cohort, x in is_in.items()}
        most = max(sorted(gaps), key=lambda cohort: abs(gaps[cohort]))
        reason, dropped = _culprit(is_in[most], [fate for _, _, _, fate in rows], gaps[most])
        return Shift(
            field="cohort",
            generated=float(is_in[most].mean()),
            trained=float(is_in[most][trained].mean()),
            size=0.5 * math.fsum(abs(gap) for gap in gaps.values()),
            certainty=standard_errors(is_in[most], trained, clusters),
            reason=reason,
            dropped=dropped,
            episodes=len(rows),
            cohort=most,
        )

    def _is_enough(self, rows: Sequence[tuple[int, bool]]) -> bool:
        groups_trained = len({number for number, trained in rows if trained})
        groups_dropped = len({number for number, trained in rows if not trained})
        return min(groups_trained, groups_dropped) >= self._config.min_groups


def standard_errors(values: Floats, trained: NDArray[np.bool_], clusters: NDArray[np.int64]) -> float:
    """Cluster-robust t statistic: |mean of trained - mean of the rest| over its standard error.

    With residuals `e` from the mean of an episode's own side and `n` the episodes on that side, a group contributes
    `s = sum(e / n of trained) - sum(e / n of dropped)`; the squared error is `C / (C - 1) * sum(s^2)` over C groups
    (Liang & Zeger 1986). 0 where the means are equal, infinite where they differ and nothing varies.

    Args:
        values: `[N]`.
        trained: `[N]`, with both sides present.
        clusters: `[N]` numbers from 0: which group an episode is of.
    """
    means = np.where(trained, values[trained].mean(), values[~trained].mean())
    gap = abs(float(values[trained].mean() - values[~trained].mean()))
    share = np.where(trained, 1.0 / trained.sum(), -1.0 / (~trained).sum())
    per_group = np.bincount(clusters, weights=(values - means) * share)
    count = len(np.unique(clusters))
    error = math.sqrt(count / (count - 1) * float(np.sum(per_group**2))) if count > 1 else 0.0
    if error > 0:
        return gap / error
    return math.inf if gap > 0 else 0.0


def _value(facts: EpisodeFacts, measure: Measure) -> float | None:
    return {"length": facts.length, "turns": facts.turns, "seconds": facts.seconds, "reward": facts.reward}[measure]


def _culprit(values: Floats, fates: Sequence[str], moved: float) -> tuple[str, int]:
    """The drop reason whose episodes lie farthest on the side that training moved away from, and their number."""
    centre = float(values.mean())
    counts = Counter(fate for fate in fates if fate != TRAINED)
    pull = dict.fromkeys(sorted(counts), 0.0)
    for value, fate in zip(values, fates, strict=True):
        if fate != TRAINED:
            pull[fate] += (centre - value) * (1 if moved >= 0 else -1)
    reason = max(pull, key=lambda fate: (pull[fate], counts[fate]))
    return reason, counts[reason]


def _text(shift: Shift) -> str:
    end = f"most of it is due to {shift.reason!r}, which dropped {shift.dropped} of {shift.episodes} episodes"
    if shift.field == "cohort":
        return (
            f"trained episodes are not like generated ones: cohort {shift.cohort!r} is {shift.generated:.0%} of "
            f"generated and {shift.trained:.0%} of trained (distance of the cohorts {shift.size:.2f}); {end}"
        )
    unit = _UNITS[shift.field]
    return (
        f"trained episodes are not like generated ones: {shift.field} is {shift.generated:.4g}{unit} generated and "
        f"{shift.trained:.4g}{unit} trained on average ({shift.size:+.2f} standard deviations); {end}"
    )
