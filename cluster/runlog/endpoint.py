"""Where Prometheus scrapes the driver.

The endpoint has no password: it is meant for the loopback interface, and `MetricsConfig` refuses others unless told.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from milepost.cluster.base.exits import ConfigError


class MetricsConfig(BaseModel):
    """Where Prometheus scrapes the driver."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Interface of the metrics endpoint")
    port: int = Field(0, ge=0, le=65535, description="Port of the metrics endpoint; 0 takes a free one")
    allow_remote: bool = Field(False, description="Allow a host that other machines can reach; it has no password")

    @model_validator(mode="after")
    def _stays_on_loopback(self) -> Self:
        if not self.allow_remote and not _is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} is not a loopback address and the endpoint has no password; "
                "use 127.0.0.1 or set metrics.allow_remote = true"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_port(config: MetricsConfig) -> None:
    """Raises ConfigError unless the endpoint could listen now; nobody keeps the port until it does."""
    try:
        socket.create_server((config.host, config.port)).close()
    except OSError as error:
        raise unusable(config.host, config.port, error) from error


def unusable(host: str, port: int, error: OSError) -> ConfigError:
    """What to tell a user whose port cannot be listened on."""
    return ConfigError(
        f"metrics.port {port} on {host} cannot be used: {error.strerror}; set metrics.port = 0 for a free one"
    )
