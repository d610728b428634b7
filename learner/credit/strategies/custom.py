"""A user's own credit strategy, named by its dotted path and held to the interface of `assignment.Strategy`.

Its class is trusted code: loading it runs its module. It says what it reads and how it is scaled; `trial.trial` looks
at it before a run. Not promised: that it is fast, since every learner rank runs it on every group.
"""

from __future__ import annotations

from typing import Literal, cast

import msgspec
from pydantic import Field

from milepost.envs.dotted_path import DottedPathError, resolve
from milepost.learner.credit.assignment import Credit, CreditGroup, CreditTrajectory, Need, Scaling, Strategy
from milepost.learner.credit.settings import CreditSettings
from milepost.learner.credit.trial import StrategyError, require_fit


class CustomConfig(CreditSettings):
    """A turn's credit is what a class of the user's own says."""

    strategy: Literal["custom"] = Field("custom", description="A class of your own, named by path")
    path: str = Field(min_length=1, description="Credit strategy, package.module:Class")
    options: dict[str, bool | int | float | str] = Field({}, description="Keyword arguments of its constructor")


class Custom:
    """The strategy at `config.path`. An invalid turn comes to it with its reward less `invalid_penalty`.

    Raises StrategyError if there is none, or if it cannot be built.
    """

    def __init__(self, config: CustomConfig) -> None:
        self._config = config
        self._strategy = _built(config)

    @property
    def requires(self) -> frozenset[Need]:
        """What the class says."""
        return frozenset(self._strategy.requires)

    @property
    def scaling(self) -> Scaling:
        """What the class says."""
        return self._strategy.scaling

    def assign(self, group: CreditGroup) -> Credit:
        """As the class says. Raises StrategyError where it raises, or returns what is no credit of `group`."""
        try:
            credit = self._strategy.assign(_charged(group, self._config.invalid_penalty))
        except Exception as error:  # a user's class may raise anything
            raise StrategyError(f"assign raised {type(error).__name__}: {error}") from error
        return require_fit(credit, group)


def _built(config: CustomConfig) -> Strategy:
    try:
        found = resolve(config.path)
    except DottedPathError as error:
        raise StrategyError(str(error).removeprefix(f"{config.path!r}: ")) from error
    if not isinstance(found, type) or not callable(getattr(found, "assign", None)):
        raise StrategyError(f"it is {found!r}, not a class with a method assign(group)")
    try:
        strategy = found(**config.options)
        missing = [name for name in ("requires", "scaling") if not hasattr(strategy, name)]
        frozenset(() if missing else strategy.requires)
    except Exception as error:  # a user's constructor may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise StrategyError(f"it cannot be built with options {config.options}: {reason}") from error
    if missing:
        raise StrategyError(f"it has no {' and no '.join(missing)}; docs/credit.md shows a strategy that has both")
    return cast(Strategy, strategy)


def _charged(group: CreditGroup, invalid_penalty: float) -> CreditGroup:
    """The group with the penalty in the rewards of its invalid turns."""
    return CreditGroup(
        group.task_id,
        tuple(
            CreditTrajectory(
                t.outcome,
                tuple(
                    msgspec.structs.replace(turn, reward=turn.reward - invalid_penalty) if turn.invalid else turn
                    for turn in t.turns
                ),
            )
            for t in group.trajectories
        ),
        group.history,
    )
