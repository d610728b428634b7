"""The environments of a configuration: one table `[env]`, or several `[[env]]`, each with a name of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Discriminator, Field, Tag

from milepost.envs.scenarios import MAX_ENVIRONMENTS, ScenarioConfig


def _kind(value: object) -> str:
    return "several" if isinstance(value, list | tuple) else "one"


def _named(several: tuple[ScenarioConfig, ...]) -> tuple[ScenarioConfig, ...]:
    unnamed = next((number for number, env in enumerate(several, start=1) if not env.name), None)
    if unnamed is not None:
        raise ValueError(f'[[env]] table {unnamed} has no name; give it one, e.g. name = "lake"')
    name, count = Counter(env.name for env in several).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} [[env]] tables are called {name!r}; every environment needs a name of its own")
    return several


Environments = Annotated[
    Annotated[ScenarioConfig, Tag("one")]
    | Annotated[
        tuple[ScenarioConfig, ...],
        Field(min_length=1, max_length=MAX_ENVIRONMENTS),
        AfterValidator(_named),
        Tag("several"),
    ],
    Discriminator(_kind),
]
"""What the key `env` holds. Raises ValueError, which pydantic reports, for tables without a name or with the same."""


def with_path(env: ScenarioConfig | Sequence[ScenarioConfig], path: str) -> tuple[ScenarioConfig, ...]:
    """What the key `env` holds as tables; with a `path`, that stands in place of theirs."""
    envs = (env,) if isinstance(env, ScenarioConfig) else tuple(env)
    return tuple(each.model_copy(update={"path": path}) for each in envs) if path else envs
