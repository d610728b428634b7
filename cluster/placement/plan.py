"""The plan of a run: which engine, learner rank and worker lies in which bundle, and what it takes of it.

Plain arithmetic. A bundle is what Ray reserves on one host as a whole: an engine with all GPUs of its tensor
parallelism, a learner rank, a worker, or an engine and a rank that share a GPU. Not promised: that all of it fits into
memory (`milepost.cluster.placement.memory`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.placement.hosts import Build, Host, installed_build, named_ray, own_host
from milepost.cluster.settings.config import RunConfig


@dataclass(frozen=True, slots=True)
class Part:
    """One engine, learner rank or worker: the number of its bundle, and its share of that."""

    bundle: int
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Everything that a run starts on Ray."""

    engines: tuple[Part, ...]
    ranks: tuple[Part, ...]
    workers: tuple[Part, ...]
    pinned: frozenset[int]
    """Bundles that must lie on the driver's host."""

    @property
    def bundles(self) -> list[dict[str, float]]:
        """What each bundle reserves, as Ray takes it."""
        parts = [*self.engines, *self.ranks, *self.workers]
        found: list[dict[str, float]] = [{} for _ in range(1 + max(part.bundle for part in parts))]
        for part in parts:
            bundle = found[part.bundle]
            bundle["CPU"] = round(bundle.get("CPU", 0.0) + part.cpus, 2)
            if part.gpus:
                bundle["GPU"] = bundle.get("GPU", 0.0) + part.gpus
        return found

    @property
    def shares_gpus(self) -> bool:
        """Whether an engine and a learner rank lie on one GPU."""
        return any(0 < part.gpus < 1 for part in self.ranks)

    @property
    def totals(self) -> tuple[float, float]:
        """GPUs and CPUs of all bundles."""
        bundles = self.bundles
        return sum(b.get("GPU", 0.0) for b in bundles), round(sum(b["CPU"] for b in bundles), 2)


def place(config: RunConfig, hosts: Sequence[Host], build: Build, *, learns: bool, is_final: bool) -> Placement:
    """Place a run on `hosts`, of which the driver's is the first one.

    On a single host engines and ranks share GPUs where there are too few for each of its own, and processes share CPUs
    alike. On several hosts, and where Ray may add some, every part takes whole ones and is waited for.

    Args:
        learns: whether there is a learner; an evaluation has none.
        is_final: whether no host can come later.

    Raises ConfigError for what these hosts can never hold.
    """
    tensor_parallel = config.engine.tensor_parallel_size
    engines, ranks = config.engine.num_engines, config.learner.ranks if learns else 0
    has_gpus = build.engine or sum(host.gpus for host in hosts) > 0
    engine_gpus, rank_gpus = build.engine * tensor_parallel, int(build.learner and has_gpus)
    wanted, there = engines * engine_gpus + ranks * rank_gpus, sum(host.gpus for host in hosts)
    shared = (
        _shared(engines * build.engine, ranks * rank_gpus, there) if len(hosts) == 1 and tensor_parallel == 1 else 0
    )
    if wanted > there and not shared and is_final:
        raise ConfigError(_too_few_gpus(engines * engine_gpus, ranks * rank_gpus, there))
    if shared and config.engine.transfer == "nccl":
        raise ConfigError(
            f'engine.transfer = "nccl" needs a GPU for each engine and learner rank, {wanted} in all, and there are '
            f"{there}: leave engine.transfer out"
        )
    share = _cpu_share(hosts, engines + ranks + config.actors.num_workers, waits=wanted > there and not shared)
    first_rank = engines - shared
    placement = Placement(
        engines=tuple(Part(k, share, 0.5 if k < shared else engine_gpus) for k in range(engines)),
        ranks=tuple(
            Part(k if k < shared else first_rank + k, share, 0.5 if k < shared else rank_gpus) for k in range(ranks)
        ),
        workers=tuple(Part(first_rank + ranks + k, share, 0) for k in range(config.actors.num_workers)),
        pinned=frozenset(_pinned(config, engines, first_rank + ranks, has_rank_apart=ranks > 0 and not shared)),
    )
    _require_reach(config, hosts, placement)
    return placement


def engines_sleep(config: RunConfig, placement: Placement) -> bool:
    """Whether engines leave the GPUs that they share to the ranks while these train.

    They do where nothing is sampled then (`run.max_staleness = 0`), unless `engine.vllm.enable_sleep_mode` says no.
    """
    is_wanted = config.engine.vllm.get("enable_sleep_mode") is not False
    return placement.shares_gpus and config.run.max_staleness == 0 and is_wanted


def check_own_host(config: RunConfig) -> None:
    """Raises ConfigError for a training that a Ray of our own could never hold; one that is named is asked later."""
    if not named_ray(config.run.ray_address):
        place(config, [own_host()], installed_build(), learns=True, is_final=True)


def _shared(engines: int, ranks: int, gpus: int) -> int:
    """How many engines share their GPU with a rank; 0 where none needs to or too few can."""
    pairs = engines + ranks - gpus
    return pairs if 0 < pairs <= min(engines, ranks) else 0


def _too_few_gpus(of_engines: int, of_ranks: int, there: int) -> str:
    wanted = f"{of_engines} for engines" + (f" and {of_ranks} for learner ranks" if of_ranks else "")
    return (
        f"GPUs: {wanted} are wanted, {there} here: lower engine.num_engines, engine.tensor_parallel_size or "
        "learner.ranks, or name a larger cluster in run.ray_address"
    )


def _cpu_share(hosts: Sequence[Host], parts: int, *, waits: bool) -> float:
    """CPUs that each part takes: one, or an equal share of a single host that has fewer."""
    cpus = hosts[0].cpus
    if len(hosts) > 1 or waits or not 0 < cpus < parts:
        return 1.0
    return max(0.01, math.floor(100 * cpus / parts) / 100)


def _pinned(config: RunConfig, engines: int, before_workers: int, *, has_rank_apart: bool) -> Iterator[int]:
    """Bundles that work on the driver's host alone."""
    if not config.buffer.url_env:  # whoever is elsewhere does not reach an embedded Redis
        yield from range(before_workers + config.actors.num_workers)
    elif config.engine.transfer == "file":
        yield from range(engines + has_rank_apart)


def _require_reach(config: RunConfig, hosts: Sequence[Host], placement: Placement) -> None:
    """Raises ConfigError where a part would lie on a host that it cannot work on."""
    if len(hosts) == 1:
        return
    if not config.buffer.url_env:
        raise ConfigError(
            f"Ray has {len(hosts)} hosts and buffer.url_env is empty: workers on other hosts do not reach an embedded "
            "Redis; set buffer.url_env to the environment variable that holds the URL of one that every host reaches"
        )
    pinned = [bundle for k, bundle in enumerate(placement.bundles) if k in placement.pinned]
    for kind, there in (("GPU", hosts[0].gpus), ("CPU", hosts[0].cpus)):
        wanted = sum(bundle.get(kind, 0.0) for bundle in pinned)
        if wanted > there:
            raise ConfigError(
                f'engine.transfer = "file" hands weights over in the shared memory of the driver\'s host, which has '
                f"{there:g} of the {wanted:g} {kind}s that engines and learner rank 0 take: set engine.transfer = "
                '"object_store", or start the driver on a host where they fit'
            )
