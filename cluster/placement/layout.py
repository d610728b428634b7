"""Which host each bundle of a plan comes to lie on, for hosts that are empty: the first one with room.

Ray packs in its own way; counts per host may differ there, sums do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.placement.hosts import Host
from milepost.cluster.placement.plan import Placement


@dataclass(slots=True)
class Filled:
    """One host with the indices of what lies on it."""

    free_cpus: float
    free_gpus: float
    engines: list[int] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    workers: list[int] = field(default_factory=list)


def fill(hosts: Sequence[Host], placement: Placement) -> list[Filled]:
    """Lay every bundle on a host, the driver's first. Raises ConfigError for one that no host has room for."""
    filled = [Filled(host.cpus, host.gpus) for host in hosts]
    for number, bundle in enumerate(placement.bundles):
        gpus, cpus = bundle.get("GPU", 0.0), bundle["CPU"]
        allowed = filled[:1] if number in placement.pinned else filled
        place = next((host for host in allowed if host.free_gpus >= gpus and host.free_cpus >= cpus), None)
        if place is None:
            raise ConfigError(_no_room(placement, number, gpus, hosts))
        place.free_gpus, place.free_cpus = place.free_gpus - gpus, round(place.free_cpus - cpus, 2)
        for parts, there in (
            (placement.engines, place.engines),
            (placement.ranks, place.ranks),
            (placement.workers, place.workers),
        ):
            there += [index for index, part in enumerate(parts) if part.bundle == number]
    return filled


def _no_room(placement: Placement, number: int, gpus: float, hosts: Sequence[Host]) -> str:
    kinds = {"engine": placement.engines, "learner rank": placement.ranks, "worker": placement.workers}
    what = next(
        f"{kind} {index}" for kind, parts in kinds.items() for index, part in enumerate(parts) if part.bundle == number
    )
    there = " + ".join(str(host.gpus) for host in hosts)
    return (
        f"no host has room for {what}, which takes {gpus:g} GPUs of one host: the hosts have {there}; lower "
        "engine.num_engines, engine.tensor_parallel_size, learner.ranks or actors.num_workers, or plan more hosts"
    )
