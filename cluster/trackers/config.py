"""Which trackers are told of a run, and whether their packages are there.

It holds no secret: WANDB_API_KEY and MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_TOKEN do.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from milepost.cluster.base.exits import ConfigError


class TrackersConfig(BaseModel):
    """Experiment trackers that are told of the run, by choice."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensorboard: bool = Field(False, description="Write event files for TensorBoard into the run's folder")
    wandb: Literal["", "offline", "online"] = Field(
        "", description="Weights & Biases: offline writes into the run's folder; empty: none"
    )
    mlflow: str = Field(
        "", description="Tracking URI of MLflow, e.g. http://127.0.0.1:5000 or file:mlruns; empty: none"
    )

    @field_validator("mlflow")
    @classmethod
    def _holds_no_password(cls, value: str) -> str:
        return without_password(value)

    @property
    def wanted(self) -> Iterator[str]:
        """Names of the trackers, which are those of their settings, packages and extras."""
        return (name for name in ("tensorboard", "wandb", "mlflow") if getattr(self, name))


def without_password(uri: str) -> str:
    """The same URI of MLflow. Raises ValueError for one that holds who may use it: URIs are written into files."""
    if urlsplit(uri).username is not None:
        raise ValueError(
            "a URI with a password does not belong into a file; set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )
    return uri


def require_packages(config: TrackersConfig) -> None:
    """Raises ConfigError where a tracker's package is not installed."""
    for name in config.wanted:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"trackers.{name} needs a package that is not there: pip install 'milepost[{name}]', or leave it out"
            )
