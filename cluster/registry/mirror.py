"""Whether a registry's policies are copied into MLflow, and where to: a file beside the trail says so.

A promotion or rollback stands whatever MLflow says to it; what is missing there is copied by the next one.
"""

from __future__ import annotations

import importlib.util
from typing import Final

import msgspec

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.registry.registry import Registry
from milepost.cluster.trackers.config import without_password

_FILE: Final = "mlflow.json"


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A registered model of a tracking server."""

    uri: str
    model: str


def connect(registry: Registry, place: Place) -> list[int]:
    """Copy what is missing in `place`, and let promotions and rollbacks do so from then on; the versions copied.

    Hold the lock. Raises ConfigError where the URI holds a password, and as `mlflow_store.follow`.
    """
    try:
        without_password(place.uri)
    except ValueError as error:
        raise ConfigError(f"--mlflow: {error}") from error
    copied = _follow(registry, place)
    (registry.path / _FILE).write_bytes(msgspec.json.encode(place) + b"\n")
    return copied


def follow(registry: Registry) -> str:
    """Bring MLflow up to the trail, where `connect` was asked for; what went wrong, else "". Hold the lock."""
    path = registry.path / _FILE
    try:
        _follow(registry, msgspec.json.decode(path.read_bytes(), type=Place))
    except FileNotFoundError:
        return ""
    except msgspec.DecodeError as error:
        return f"{path}: {error}; milepost policies --mlflow URI writes it anew"
    except ConfigError as error:
        return f"{error}; milepost policies --mlflow URI tries it again"
    return ""


def _follow(registry: Registry, place: Place) -> list[int]:
    if importlib.util.find_spec("mlflow") is None:
        raise ConfigError("a copy in MLflow needs a package that is not there: pip install 'milepost[mlflow]'")
    from milepost.cluster.registry import mlflow_store  # an extra, seconds to load

    return mlflow_store.follow(registry, place.uri, place.model)
