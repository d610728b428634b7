"""Which credit strategies there are. A new strategy is one file and two lines here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, get_args

from pydantic import Discriminator, Tag, TypeAdapter

from milepost.learner.credit.assignment import Strategy
from milepost.learner.credit.settings import CreditSettings
from milepost.learner.credit.strategies.bilevel_gae import BiLevelGAE, BiLevelGAEConfig
from milepost.learner.credit.strategies.crbc import CRBC, CRBCConfig
from milepost.learner.credit.strategies.custom import Custom, CustomConfig
from milepost.learner.credit.strategies.g2po import G2PO, G2POConfig
from milepost.learner.credit.strategies.gigpo import GiGPO, GiGPOConfig
from milepost.learner.credit.strategies.graphgpo import GraphGPO, GraphGPOConfig
from milepost.learner.credit.strategies.graphhca import GraphHCA, GraphHCAConfig
from milepost.learner.credit.strategies.hgpo import HGPO, HGPOConfig
from milepost.learner.credit.strategies.pbrs import PBRS, PBRSConfig
from milepost.learner.credit.strategies.salt import SALT, SALTConfig
from milepost.learner.credit.strategies.stapo import STAPO, STAPOConfig
from milepost.learner.credit.strategies.starpo import StarPO, StarPOConfig
from milepost.learner.credit.strategies.steppo import StepPO, StepPOConfig

DEFAULT: Final = "crbc"
READS_SUCCESS: Final = frozenset({"crbc", "g2po", "graphgpo", "graphhca", "pbrs", "salt"})
"""Strategies that go by success where the environment reports it, and else by returns."""


def _named(value: Any) -> Any:
    """The strategy that a table of settings names: a path alone means a class of the user's own."""
    if isinstance(value, dict):
        return value.get("strategy", "custom" if "path" in value else DEFAULT)
    return getattr(value, "strategy", None)


CreditConfig = Annotated[
    Annotated[StarPOConfig, Tag("starpo")]
    | Annotated[GiGPOConfig, Tag("gigpo")]
    | Annotated[HGPOConfig, Tag("hgpo")]
    | Annotated[GraphGPOConfig, Tag("graphgpo")]
    | Annotated[G2POConfig, Tag("g2po")]
    | Annotated[GraphHCAConfig, Tag("graphhca")]
    | Annotated[CRBCConfig, Tag("crbc")]
    | Annotated[SALTConfig, Tag("salt")]
    | Annotated[STAPOConfig, Tag("stapo")]
    | Annotated[StepPOConfig, Tag("steppo")]
    | Annotated[BiLevelGAEConfig, Tag("bilevel_gae")]
    | Annotated[PBRSConfig, Tag("pbrs")]
    | Annotated[CustomConfig, Tag("custom")],
    Discriminator(_named),
]
"""How a turn earns its advantage: the settings of one strategy."""

_ADAPTER: TypeAdapter[CreditConfig] = TypeAdapter(CreditConfig)
_BUILDERS: Final[dict[str, Callable[[Any], Strategy]]] = {
    "starpo": StarPO,
    "gigpo": GiGPO,
    "hgpo": HGPO,
    "graphgpo": GraphGPO,
    "g2po": G2PO,
    "graphhca": GraphHCA,
    "crbc": CRBC,
    "salt": SALT,
    "stapo": STAPO,
    "steppo": StepPO,
    "bilevel_gae": BiLevelGAE,
    "pbrs": PBRS,
    "custom": Custom,
}
SETTINGS: Final[dict[str, type[CreditSettings]]] = {
    get_args(member)[1].tag: get_args(member)[0] for member in get_args(get_args(CreditConfig)[0])
}
"""Name of every strategy -> the type of its settings."""


def settings(**values: object) -> CreditConfig:
    """The settings of the strategy that `strategy` names. Raises pydantic's ValidationError if they are wrong."""
    return _ADAPTER.validate_python(values)


def build(config: CreditConfig) -> Strategy:
    """The strategy that `config` is the settings of. Raises StrategyError where a user's own cannot be loaded."""
    return _BUILDERS[config.strategy](config)
