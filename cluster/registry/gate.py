"""The gate: what a policy has to show on a suite before it may be the champion. A TOML file; it plays nothing.

An absolute limit is compared with the policy's own numbers. A relative one goes by the paired comparison with the
champion (`cluster/evaluation/compare.py`), so that a difference within chance is called undecided and not worse.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from milepost.cluster.base.exits import ConfigError

Metric = Literal["success", "safety", "step_efficiency", "tokens", "steps_p99"]
LESS_IS_BETTER = frozenset({"tokens", "steps_p99"})
EACH = "*"
_COHORT = f'Cohort by its name, "{EACH}" for each one; empty for all episodes together'


class Absolute(BaseModel):
    """A bound on the policy's own number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    metric: Metric = Field(description="What is bounded")
    limit: float = Field(allow_inf_nan=False, description="At least so much; of tokens and steps_p99, at most so many")
    cohort: str = Field("", description=_COHORT)


class Relative(BaseModel):
    """A bound on what the policy may lose against the champion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    metric: Metric = Field(description="What is compared")
    tolerance: float = Field(
        0,
        ge=0,
        allow_inf_nan=False,
        description="Loss that passes: of success, safety and step_efficiency a difference (0.05 of 1), of tokens and "
        "steps_p99 a share of the champion's (0.15 more)",
    )
    undecided: Literal["refuse", "pass"] = Field(
        "refuse", description="What follows where the comparison decides nothing; steps_p99 is always decided"
    )
    cohort: str = Field("", description=_COHORT)

    @model_validator(mode="after")
    def _can_be_undecided(self) -> Self:
        if self.metric == "steps_p99" and "undecided" in self.model_fields_set:
            raise ValueError("undecided: steps_p99 is compared as it is and always decided; leave the key out")
        return self


class Gate(BaseModel):
    """A whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    suite: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the suite's scenarios: no other results count")
    episodes: int = Field(ge=1, description="Fewest episodes of each scenario")
    absolute: list[Absolute] = Field(min_length=1, description="Limits of the policy's own numbers")
    relative: list[Relative] = Field([], description="Limits beside the champion; without one, they ask nothing")


def load(path: Path) -> tuple[Gate, str]:
    """The gate of a file, and the file's SHA-256. Raises ConfigError with a line for each thing that is wrong."""
    try:
        content = path.read_bytes()
        return Gate.model_validate(tomllib.loads(content.decode())), hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give a gate file, as docs/serving.md describes it") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid UTF-8: {error}; write the file as text") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        raise ConfigError("\n".join(_complaints(error, path))) from error


def _complaints(error: ValidationError, path: Path) -> Iterator[str]:
    for detail in error.errors(include_url=False):
        key = ".".join(str(part + 1) if isinstance(part, int) else part for part in detail["loc"])
        reason = "unknown key" if detail["type"] == "extra_forbidden" else detail["msg"].removeprefix("Value error, ")
        yield f"{path}: {key}: {reason}"
