"""Which credit strategies there are. A new strategy is one file and two lines here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, get_args

from pydantic import Discriminator, Tag, TypeAdapter

from milepost.learner.credit.assignment import Strategy
from milepost.learner.credit.crbc import CRBC, CRBCConfig
from milepost.learner.credit.settings import CreditSettings
from milepost.learner.credit.starpo import StarPO, StarPOConfig

DEFAULT: Final = "crbc"


def _named(value: Any) -> Any:
    """The strategy that a table of settings names."""
    return value.get("strategy", DEFAULT) if isinstance(value, dict) else getattr(value, "strategy", None)


CreditConfig = Annotated[
    Annotated[CRBCConfig, Tag("crbc")] | Annotated[StarPOConfig, Tag("starpo")],
    Discriminator(_named),
]
"""How a turn earns its advantage: the settings of one strategy."""

_ADAPTER: TypeAdapter[CreditConfig] = TypeAdapter(CreditConfig)
_BUILDERS: Final[dict[str, Callable[[Any], Strategy]]] = {"crbc": CRBC, "starpo": StarPO}
SETTINGS: Final[dict[str, type[CreditSettings]]] = {
    get_args(member)[1].tag: get_args(member)[0] for member in get_args(get_args(CreditConfig)[0])
}
"""Name of every strategy -> the type of its settings."""


def settings(**values: object) -> CreditConfig:
    """The settings of the strategy that `strategy` names. Raises pydantic's ValidationError if they are wrong."""
    return _ADAPTER.validate_python(values)


def build(config: CreditConfig) -> Strategy:
    """The strategy that `config` is the settings of."""
    return _BUILDERS[config.strategy](config)
