"""The places of a run's actors on Ray: one placement group, reserved as a whole before anything is started in it.

A bundle lies on one host, and a lost host's bundles move to others that have room. Not promised: that a host which is
waited for ever comes; a deadline ends the wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from milepost.cluster.base.exits import DependencyLost
from milepost.cluster.placement.hosts import Host
from milepost.cluster.placement.plan import Part, Placement
from milepost.cluster.pools.ray_start import start_ray
from milepost.cluster.pools.weights import alive_hosts

Place = Callable[[int], Mapping[str, Any]]
"""The options that the actor of an index is started with: where it lies, and what it takes there."""
_FIRST_WORD_S = 2.0
_NEXT_WORD_S = 10.0
_PIN = 0.001
"""Of the resource by which Ray names a host, which has 1 of it."""


def hosts() -> list[Host]:
    """The hosts of the Ray that was joined, the driver's first."""
    here = ray.get_runtime_context().get_node_id()
    nodes = sorted(alive_hosts(), key=lambda node: node["NodeID"] != here)
    return [Host(node["Resources"].get("CPU", 0.0), int(node["Resources"].get("GPU", 0))) for node in nodes]


def joined_hosts(address: str) -> list[Host]:
    """The hosts of the Ray that `address` names, which is joined for a moment. Raises DependencyLost."""
    start_ray(address)
    try:
        return hosts()
    finally:
        ray.shutdown()


class Places:
    """A reserved placement."""

    def __init__(self, placement: Placement, run_id: str) -> None:
        pin = {f"node:{ray.util.get_node_ip_address()}": _PIN}
        bundles = [bundle | (pin if k in placement.pinned else {}) for k, bundle in enumerate(placement.bundles)]
        self._placement = placement
        self._group: PlacementGroup = placement_group(bundles, strategy="PACK", name=run_id)

    async def reserved(self, timeout_s: float, note: Callable[[str], None]) -> None:
        """Return once every bundle lies somewhere; `note` is told of what is waited for.

        Raises DependencyLost with what is missing after `timeout_s`, which is `engine.start_timeout_s`.
        """
        began, ready = time.monotonic(), asyncio.ensure_future(self._group.ready())
        try:
            wait_s = _FIRST_WORD_S
            while not (await asyncio.wait({ready}, timeout=min(wait_s, began + timeout_s - time.monotonic())))[0]:
                missing, left_s = self._missing(), began + timeout_s - time.monotonic()
                if left_s <= 0:
                    raise DependencyLost(
                        f"Ray had no room for the run within engine.start_timeout_s = {timeout_s:g}: {missing}; add "
                        "hosts, or lower engine.num_engines, learner.ranks or actors.num_workers"
                    )
                note(f"waiting for room on Ray, {left_s:.0f} s at most: {missing}")
                wait_s = _NEXT_WORD_S
            ready.result()
        finally:
            ready.cancel()

    def _missing(self) -> str:
        free, (gpus, cpus) = ray.available_resources(), self._placement.totals
        pinned = len(self._placement.pinned)
        where = f", {pinned} of its {len(self._placement.bundles)} bundles on the driver's host" if pinned else ""
        return (
            f"the run takes {gpus:g} GPUs and {cpus:g} CPUs{where}, and of the {len(hosts())} hosts "
            f"{free.get('GPU', 0):g} and {free.get('CPU', 0):g} are free"
        )

    def engine(self, index: int) -> Mapping[str, Any]:
        """As `Place`, of an inference engine."""
        return self._options(self._placement.engines[index])

    def rank(self, index: int) -> Mapping[str, Any]:
        """As `Place`, of a learner rank."""
        return self._options(self._placement.ranks[index])

    def worker(self, index: int) -> Mapping[str, Any]:
        """As `Place`, of a rollout worker."""
        return self._options(self._placement.workers[index])

    def _options(self, part: Part) -> Mapping[str, Any]:
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=part.bundle)
        return {"num_cpus": part.cpus, "num_gpus": part.gpus, "scheduling_strategy": strategy}

    def release(self) -> None:
        """Give everything back; what still runs there ends."""
        remove_placement_group(self._group)
