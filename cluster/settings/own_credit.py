"""The check of a user's own credit strategy before anything starts: it is loaded, built and tried on made-up groups.

Strategies that come with Milepost are not looked at: their tests say the same and more.
"""

from __future__ import annotations

from milepost.cluster.base.exits import ConfigError
from milepost.learner.credit.strategies.custom import CustomConfig
from milepost.learner.credit.strategies.registry import CreditConfig, build
from milepost.learner.credit.trial import StrategyError, trial


def check_credit(credit: CreditConfig) -> list[str]:
    """Warnings about the strategy at `credit.path`; none where a built-in one is named.

    Raises ConfigError with the path and what is wrong with it.
    """
    if not isinstance(credit, CustomConfig):
        return []
    try:
        return [f"credit.path: {credit.path!r}: {warning}" for warning in trial(build(credit))]
    except StrategyError as error:
        raise ConfigError(f"credit.path: {credit.path!r}: {error}") from error
