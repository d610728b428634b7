"""Which credit strategies there are. A new strategy is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable

from milepost.learner.credit.assignment import CreditConfig, Strategy
from milepost.learner.credit.crbc import CRBC
from milepost.learner.credit.starpo import StarPO

STRATEGIES: dict[str, Callable[[CreditConfig], Strategy]] = {
    "crbc": CRBC,
    "starpo": StarPO,
}


def build(config: CreditConfig) -> Strategy:
    """The strategy that `config.strategy` names; the config's type admits no other name."""
    return STRATEGIES[config.strategy](config)
