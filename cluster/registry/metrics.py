"""The registry's numbers for Prometheus, made of the trail whenever they are asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.registry.registry import Registry
from milepost.cluster.registry.rollbacks import rollback_rate
from milepost.cluster.registry.trail import RolledBack


class RegistryMetrics(Collector):
    """Promotions, rollbacks, the rate of them, and which version serves.

    The rate has no series while no promotion is as old as the window, and nothing of the registry has one while its
    trail cannot be read.
    """

    content_type: Final = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, registry: Registry, serving: Callable[[], int | None], *, window_s: float) -> None:
        self._registry, self._serving, self._window_s = registry, serving, window_s
        self.collectors = CollectorRegistry()
        self.collectors.register(self)

    def text(self) -> str:
        """What Prometheus reads."""
        return generate_latest(self.collectors).decode()

    def collect(self) -> Iterator[Metric]:
        """The series of this moment."""
        yield GaugeMetricFamily("milepost_serving_version", "Version that serves, 0 for none", self._serving() or 0)
        try:
            state = self._registry.state()
        except ConfigError:
            return
        rate = rollback_rate(state.entries, now=time.time(), window_s=self._window_s)
        rollbacks = sum(isinstance(entry.event, RolledBack) for entry in state.entries)
        yield CounterMetricFamily("milepost_promotions", "Policies that came through a gate", len(state.promotions))
        yield CounterMetricFamily("milepost_rollbacks", "Promotions that were taken back", rollbacks)
        yield GaugeMetricFamily(
            "milepost_champion_version", "Version that is to serve, 0 for none", state.champion or 0
        )
        yield GaugeMetricFamily("milepost_closed_promotions", "Promotions as old as the window", rate.promotions)
        if rate.share is not None:
            told = "Share of them that was taken back within it"
            for name, value in (("", rate.share), ("_low", rate.low), ("_high", rate.high)):
                yield GaugeMetricFamily(f"milepost_rollback{name}_ratio", told, value)
