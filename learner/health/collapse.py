"""Collapse detection: signs that a policy loses its variety before its reward, and rules by which a run is given up.

The echo trap (RAGEN, arXiv 2504.20073) shows in this order: returns inside a group stop differing, responses repeat and
stop depending on the prompt, the gradient spikes; then nothing brings the policy back. The watch compares every signal
with its own beginning in this run. An environment that is solved also has no spread left: where nearly every episode
succeeds, that is no collapse. Everything follows from the records of past iterations, so a resumed run that hands them
in goes on as if it had never stopped. The watch only says what it sees; the driver acts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from milepost.learner.credit.filter import FilterConfig

Action = Literal["warn", "filter", "lower_lr", "stop", "off"]
Signal = Literal["spread", "repetition", "information", "entropy", "gradient", "no_spread", "no_success", "no_step"]

MIN_RISE = 0.1
"""A smaller rise of repetition is no sign: policies that answer with one of four words repeat from the start."""


class CollapseConfig(BaseModel):
    """What counts as collapse, and what to do about it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    action: Action = Field(
        "warn",
        description="Response to collapse while a sign lasts: warn says so; filter also trains on the quarter of "
        "the groups with most reward spread; lower_lr also multiplies the learning rate by lr_factor; "
        "stop ends the run once a stop rule holds, and warns before; off looks at nothing",
    )
    baseline: int = Field(
        10, ge=1, description="Baseline length: first measurements of a signal, whose mean is its normal"
    )
    patience: int = Field(5, ge=1, description="Patience: measurements in a row that a sign must last")
    spread_share: float = Field(0.25, gt=0, lt=1, description="Sign: in-group reward std below this share of normal")
    information_share: float = Field(
        0.25, gt=0, lt=1, description="Sign: mutual information of prompt and response below this share of normal"
    )
    entropy_share: float = Field(0.1, gt=0, lt=1, description="Sign: entropy below this share of normal")
    repetition_share: float = Field(
        0.5, gt=0, lt=1, description="Sign: n-gram repetition risen by this share of the way from normal to 1"
    )
    gradient_factor: float = Field(
        10.0, gt=1, description="Sign: gradient norm above this multiple of the median of the measurements before"
    )
    solved_success: float = Field(0.9, gt=0, le=1, description="Success rate from which lost variety is no collapse")
    stop_share: float = Field(0.1, gt=0, lt=1, description="Stop rule: in-group reward std below this share of normal")
    stop_patience: int = Field(10, ge=1, description="Stop rule: iterations in a row below stop_share")
    stop_evals: int = Field(5, ge=1, description="Stop rule: evaluations in a row with a success rate below 1 %")
    stop_empty: int = Field(5, ge=1, description="Stop rule: iterations in a row of which the filter kept nothing")
    information_every: int = Field(
        5, ge=0, description="Mutual information interval in iterations; a measurement costs a pass; 0: never"
    )
    lr_factor: float = Field(0.5, gt=0, lt=1, description="Learning rate factor while a sign lasts (lower_lr)")


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthMetrics:
    """What one iteration measured; None for what it did not."""

    iteration: int
    spread: float | None
    """Mean standard deviation of the returns inside a group."""
    success: float | None
    entropy: float | None
    grad_norm: float | None
    groups_kept: int
    repetition: float | None = None
    """See `milepost.learner.health.repetition`."""
    information: float | None = None
    """Mutual information of prompt and response, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Success of one evaluation on held-out tasks after `iteration` iterations."""

    iteration: int
    success: float


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that holds now."""

    signal: Signal
    is_stop: bool
    """Whether this is a rule by which a run is given up; the others are early signs."""
    text: str


class CollapseWatch:
    """The records of a run so far. One small record per iteration is kept; nothing else grows."""

    def __init__(
        self, config: CollapseConfig, history: Sequence[HealthMetrics] = (), validations: Sequence[Validation] = ()
    ) -> None:
        """`history` and `validations` are those of the run before a restart, oldest first."""
        self._config = config
        self._history = list(history)
        self._validations = list(validations)
        self._told = {finding.signal for finding in self.current()}

    def current(self) -> list[Finding]:
        """What holds now, earliest sign first, stop rules last."""
        return findings(self._history, self._validations, self._config)

    def observe(self, health: HealthMetrics) -> list[Finding]:
        """Take in an iteration and return what holds now and did not before.

        After a rollback, iterations come again: the first of them replaces itself and everything later.
        """
        self._history = [old for old in self._history if old.iteration < health.iteration]
        self._validations = [old for old in self._validations if old.iteration < health.iteration]
        self._history.append(health)
        return self._news()

    def validated(self, validation: Validation) -> list[Finding]:
        """Take in an evaluation and return what holds now and did not before; see `observe` for rollbacks."""
        self._validations = [old for old in self._validations if old.iteration < validation.iteration]
        self._validations.append(validation)
        return self._news()

    def _news(self) -> list[Finding]:
        current = self.current()
        news = [finding for finding in current if finding.signal not in self._told]
        self._told = {finding.signal for finding in current}
        return news


def findings(
    history: Sequence[HealthMetrics], validations: Sequence[Validation], config: CollapseConfig
) -> list[Finding]:
    """What holds at the end of `history`, oldest record first: early signs in the order in which they come, then rules.

    Signs, each against the mean of the signal's first `baseline` measurements: spread below `spread_share` of it,
    repetition risen by `repetition_share` of the room above it, information below `information_share`, entropy below
    `entropy_share`, all for `patience` measurements in a row and while not solved; the gradient norm once above
    `gradient_factor` times the median of the `baseline` measurements before it. Stop rules: spread below `stop_share`
    for `stop_patience` iterations; held-out success below 1 % in `stop_evals` evaluations; nothing kept by the filter
    in `stop_empty` iterations; the first and the last not while solved. The rules and the order are RAGEN's (arXiv
    2504.20073, 2604.06268); the thresholds of the signs are ours.
    """
    if config.action == "off":
        return []
    spread, information, entropy, no_spread = (_below(history, rule, config) for rule in _rules(config))
    signs = [spread, _repeats(history, config), information, entropy, _spike(history, config)]
    found = [*signs, no_spread, _no_success(validations, config), _no_step(history, config)]
    return [finding for finding in found if finding is not None]


def tightened(config: FilterConfig) -> FilterConfig:
    """The filter for as long as a sign lasts, under action `filter`: the quarter of the groups with most reward spread.

    That is the filter of StarPO-S (arXiv 2504.20073); compensation stays as configured.
    """
    return FilterConfig(method="top_k", value=0.25, score="reward_std", compensation=config.compensation)


def _solved(health: HealthMetrics, config: CollapseConfig) -> bool:
    return health.success is not None and health.success >= config.solved_success


def _measured(
    history: Sequence[HealthMetrics], read: Callable[[HealthMetrics], float | None], config: CollapseConfig
) -> tuple[float, list[tuple[HealthMetrics, float]]] | None:
    """The normal of a signal and its measurements after that; None while there are too few for a normal."""
    values = [(health, value) for health in history if (value := read(health)) is not None]
    if len(values) <= config.baseline:
        return None
    return fmean(value for _, value in values[: config.baseline]), values[config.baseline :]


def _streak(flags: Sequence[tuple[int, bool]]) -> tuple[int, int]:
    """How many of the last flags are set in a row, and the iteration of the first of these (0 if there are none)."""
    length, since = 0, 0
    for iteration, flag in reversed(flags):
        if not flag:
            break
        length, since = length + 1, iteration
    return length, since


@dataclass(frozen=True, slots=True)
class _Rule:
    """A signal that must not stay below a share of its normal."""

    signal: Signal
    read: Callable[[HealthMetrics], float | None]
    share: float
    patience: int
    what: str


def _rules(config: CollapseConfig) -> list[_Rule]:
    spread = "standard deviation of returns inside a group"
    return [
        _Rule("spread", lambda v: v.spread, config.spread_share, config.patience, f"first sign of collapse: {spread}"),
        _Rule(
            "information",
            lambda v: v.information,
            config.information_share,
            config.patience,
            "responses hardly depend on their prompt any more: mutual information",
        ),
        _Rule("entropy", lambda v: v.entropy, config.entropy_share, config.patience, "exploration ends: entropy"),
        _Rule("no_spread", lambda v: v.spread, config.stop_share, config.stop_patience, f"collapsed: {spread}"),
    ]


def _below(history: Sequence[HealthMetrics], rule: _Rule, config: CollapseConfig) -> Finding | None:
    measured = _measured(history, rule.read, config)
    if measured is None:
        return None
    normal, later = measured
    length, since = _streak([(v.iteration, x < rule.share * normal and not _solved(v, config)) for v, x in later])
    if length < rule.patience:
        return None
    now = f"{later[-1][1]:.3g} now, {normal:.3g} at first"
    text = f"{rule.what} {now}, below {rule.share:.0%} of it since iteration {since}"
    return Finding(rule.signal, rule.signal == "no_spread", text)


def _repeats(history: Sequence[HealthMetrics], config: CollapseConfig) -> Finding | None:
    measured = _measured(history, lambda v: v.repetition, config)
    if measured is None:
        return None
    normal, later = measured
    limit = normal + max(MIN_RISE, config.repetition_share * (1 - normal))
    length, since = _streak([(v.iteration, x > limit and not _solved(v, config)) for v, x in later])
    if length < config.patience:
        return None
    text = (
        f"responses to different states repeat each other: {later[-1][1]:.0%} of their n-grams, {normal:.0%} at first; "
        f"above {limit:.0%} since iteration {since}"
    )
    return Finding("repetition", False, text)


def _spike(history: Sequence[HealthMetrics], config: CollapseConfig) -> Finding | None:
    norms = [(health.iteration, health.grad_norm) for health in history if health.grad_norm is not None]
    if len(norms) <= config.baseline or norms[-1][0] != history[-1].iteration:
        return None
    iteration, norm = norms[-1]
    usual = median(value for _, value in norms[-1 - config.baseline : -1])
    if not norm > config.gradient_factor * usual:
        return None
    text = (
        f"the gradient spikes, after which collapse rarely mends: norm {norm:.3g} in iteration {iteration}, "
        f"median {usual:.3g} in the {config.baseline} before; consider a lower rate or an earlier checkpoint"
    )
    return Finding("gradient", False, text)


def _no_success(validations: Sequence[Validation], config: CollapseConfig) -> Finding | None:
    length, since = _streak([(validation.iteration, validation.success < 0.01) for validation in validations])
    if length < config.stop_evals:
        return None
    text = (
        f"held-out success is below 1 % in {length} evaluations, since iteration {since}; go back to a checkpoint from "
        "before, or begin with an easier environment"
    )
    return Finding("no_success", True, text)


def _no_step(history: Sequence[HealthMetrics], config: CollapseConfig) -> Finding | None:
    length, since = _streak([(v.iteration, v.groups_kept == 0 and not _solved(v, config)) for v in history])
    if length < config.stop_empty:
        return None
    text = (
        f"the filter kept no group for {length} iterations, since iteration {since}: nothing is learned; "
        "tasks are too hard, or the policy collapsed"
    )
    return Finding("no_step", True, text)
