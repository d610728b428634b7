"""The places of a run's actors on Ray: one placement group, reserved as a whole before anything is started in it.

A bundle lies on one host. Ray moves what a lost host held to hosts with room, all of it at once or nothing: until then
these bundles lie nowhere, and what is started in them waits. Not promised: that a host which is waited for ever comes;
a deadline ends the wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from milepost.cluster.base.exits import DependencyLost
from milepost.cluster.hosts.ray_start import alive_hosts, start_ray
from milepost.cluster.placement.hosts import Host
from milepost.cluster.placement.plan import Part, Placement

_LOOK_EVERY_S = 0.2
_FIRST_WORD_S = 2.0
_NEXT_WORD_S = 10.0
_PIN = 0.001
"""Of the resource by which Ray names a host, which has 1 of it."""


class NoRoom(DependencyLost):
    """No host had room in time for what a lost one held."""


class Place(Protocol):
    """Where the engines, the learner ranks or the workers of a run lie, each by its index."""

    def options(self, index: int) -> Mapping[str, Any]:
        """What its actor is started with: where it lies, and what it takes there."""
        ...

    def lost_host(self, index: int) -> str | None:
        """The name of the host it lay on, where that one is gone and it lies on no other; None where it has a place."""
        ...

    async def regained(self) -> None:
        """Return once all of them have a place; raises NoRoom after `restarts.room_timeout_s`."""
        ...


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
    """A reserved placement: the `Place` of its engines, of its ranks and of its workers."""

    def __init__(
        self, placement: Placement, run_id: str, *, room_timeout_s: float, note: Callable[[str], None]
    ) -> None:
        """`note` is told of what is waited for; `room_timeout_s`: as `restarts.room_timeout_s`."""
        pin = {f"node:{ray.util.get_node_ip_address()}": _PIN}
        bundles = [bundle | (pin if k in placement.pinned else {}) for k, bundle in enumerate(placement.bundles)]
        self._placement = placement
        self._room_timeout_s = room_timeout_s
        self._note = note
        self._group: PlacementGroup = placement_group(bundles, strategy="PACK", name=run_id)
        self._lies: dict[int, str] = {}
        self._seen_at = 0.0
        self._lay: dict[int, str] = {}
        """Bundle -> the host it lay on when it last lay anywhere."""
        self.engines: Place = _Parts(self, "engine", placement.engines)
        self.ranks: Place = _Parts(self, "learner rank", placement.ranks)
        self.workers: Place = _Parts(self, "worker", placement.workers)

    async def reserved(self, timeout_s: float) -> None:
        """Return once every bundle lies somewhere.

        Raises DependencyLost with what is missing after `timeout_s`, which is `engine.start_timeout_s`.
        """
        if not await self._lie(range(len(self._placement.bundles)), timeout_s, self._missing):
            raise DependencyLost(
                f"Ray had no room for the run within engine.start_timeout_s = {timeout_s:g}: {self._missing()}; add "
                "hosts, or lower engine.num_engines, learner.ranks or actors.num_workers"
            )

    async def regained(self, name: str, bundles: Collection[int]) -> None:
        """Return once `bundles`, of the parts called `name`, lie somewhere. Raises NoRoom at the deadline."""

        def missing() -> str:
            lost = [host for bundle in bundles if (host := self.lost_host(bundle)) is not None]
            return f"{len(lost)} of {len(bundles)} {name}s lost their host {' and '.join(sorted(set(lost)))}"

        if not await self._lie(bundles, self._room_timeout_s, missing):
            raise NoRoom(
                f"{missing()}, and Ray had no room for them within restarts.room_timeout_s = {self._room_timeout_s:g}: "
                "give Ray a host and go on with milepost train --resume"
            )

    async def _lie(self, bundles: Collection[int], timeout_s: float, missing: Callable[[], str]) -> bool:
        """Wait until all of `bundles` lie somewhere; whether they did within `timeout_s`."""
        began = time.monotonic()
        next_word = began + _FIRST_WORD_S
        while not all(map(self._where().get, bundles)):
            left_s = began + timeout_s - time.monotonic()
            if left_s <= 0:
                return False
            if time.monotonic() >= next_word:
                self._note(f"waiting for room on Ray, {left_s:.0f} s at most: {missing()}")
                next_word = time.monotonic() + _NEXT_WORD_S
            await asyncio.sleep(_LOOK_EVERY_S)
        return True

    def lost_host(self, bundle: int) -> str | None:
        """As `Place.lost_host`, of a bundle."""
        if self._where()[bundle]:
            return None
        names = {node["NodeID"]: str(node["NodeName"]) for node in ray.nodes()}
        return names.get(self._lay[bundle], self._lay[bundle])

    def _where(self) -> dict[int, str]:
        """Bundle -> Ray's id of the host it lies on, empty where it lies on none; as Ray said a moment ago at most."""
        if not self._lies or time.monotonic() - self._seen_at > _LOOK_EVERY_S:
            self._lies, self._seen_at = placement_group_table(self._group)["bundles_to_node_id"], time.monotonic()
            self._lay |= {bundle: host for bundle, host in self._lies.items() if host}
        return self._lies

    def _missing(self) -> str:
        free, (gpus, cpus) = ray.available_resources(), self._placement.totals
        pinned = len(self._placement.pinned)
        where = f", {pinned} of its {len(self._placement.bundles)} bundles on the driver's host" if pinned else ""
        return (
            f"the run takes {gpus:g} GPUs and {cpus:g} CPUs{where}, and of the {len(hosts())} hosts "
            f"{free.get('GPU', 0):g} and {free.get('CPU', 0):g} are free"
        )

    def options(self, part: Part) -> Mapping[str, Any]:
        """As `Place.options`, of a part."""
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=part.bundle)
        return {"num_cpus": part.cpus, "num_gpus": part.gpus, "scheduling_strategy": strategy}

    def release(self) -> None:
        """Give everything back; what still runs there ends."""
        remove_placement_group(self._group)


@dataclass(frozen=True, slots=True)
class _Parts:
    """The `Place` of the parts of one kind."""

    places: Places
    name: str
    parts: tuple[Part, ...]

    def options(self, index: int) -> Mapping[str, Any]:
        return self.places.options(self.parts[index])

    def lost_host(self, index: int) -> str | None:
        return self.places.lost_host(self.parts[index].bundle)

    async def regained(self) -> None:
        await self.places.regained(self.name, [part.bundle for part in self.parts])
