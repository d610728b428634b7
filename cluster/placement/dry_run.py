"""`milepost train --dry-run`: where the parts of a run would lie and the memory that they take, before anything starts.

The account is that of docs/placement.md, which names its estimates. Not promised: that what fits on paper fits in fact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.placement.hosts import Build, Host
from milepost.cluster.placement.layout import Filled, fill
from milepost.cluster.placement.memory import (
    CONTEXT_GIB,
    Item,
    asleep_item,
    engine_items,
    host_items,
    rank_items,
    sequence_gib,
    total,
)
from milepost.cluster.placement.plan import Placement, engines_sleep, place
from milepost.cluster.placement.size import ModelSize
from milepost.cluster.settings.config import RunConfig


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a run is planned for: hosts, the driver's first, that are alike in memory."""

    hosts: Sequence[Host]
    build: Build
    gpu_gib: float
    host_gib: float


@dataclass(frozen=True, slots=True)
class Account:
    """What one kind of GPU or one host holds, and what it has."""

    title: str
    items: list[Item]
    gib: float
    way_out: str

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        yield f"{self.title}: {total(self.items):.1f} of {self.gib:.1f} GiB"
        yield from (f"  {item.what:<48}{item.gib:9.2f} GiB" for item in self.items)


def plan(config: RunConfig, size: ModelSize, hardware: Hardware) -> tuple[list[str], list[Account]]:
    """The placement in lines, and the account of each kind of GPU and of each host.

    Raises ConfigError where the parts find no place; what they need of memory is judged by `too_small`.
    """
    placement = place(config, hardware.hosts, hardware.build, learns=True, is_final=True)
    filled = fill(hardware.hosts, placement)
    hosts = [_host(config, size, hardware, placement, k, host) for k, host in enumerate(filled)]
    return list(_where(config, placement, filled)), [*_gpus(config, size, hardware, placement), *hosts]


def too_small(config: RunConfig, size: ModelSize, accounts: Sequence[Account]) -> list[str]:
    """One line for everything that does not fit; empty if all does."""
    lines = []
    for account in accounts:
        cache = next((item for item in account.items if item.what == "engine's KV cache"), None)
        least = sequence_gib(config, size)
        if cache is not None and cache.gib < least:
            lines.append(
                f"{account.title}: engine.gpu_memory_utilization = {config.engine.gpu_memory_utilization:g} leaves "
                f"{cache.gib:.1f} GiB for the KV cache, and one sequence of engine.max_model_len takes {least:.1f}: "
                "raise it or engine.tensor_parallel_size"
            )
        if total(account.items) > account.gib:
            needed = f"needs {total(account.items):.1f} of {account.gib:.1f} GiB"
            lines.append(f"{account.title}: {needed}: {account.way_out}")
    return lines


def _where(config: RunConfig, placement: Placement, filled: Sequence[Filled]) -> Iterator[str]:
    engine, learner = config.engine, config.learner
    gpus, cpus = placement.totals
    yield (
        f"{engine.num_engines} engines x tensor parallel {engine.tensor_parallel_size}, {learner.ranks} learner ranks "
        f"(ZeRO {learner.zero_stage}), {config.actors.num_workers} workers: {gpus:g} GPUs and {cpus:g} CPUs in "
        f"{len(placement.bundles)} bundles"
    )
    if placement.shares_gpus:
        together = "of which one sleeps" if engines_sleep(config, placement) else "both in memory at once"
        yield f"an engine and a learner rank share a GPU, {together}"
    for number, host in enumerate(filled):
        kinds = {"engine": host.engines, "learner rank": host.ranks, "worker": host.workers}
        there = ", ".join(_named(kind, indices) for kind, indices in kinds.items() if indices)
        yield f"host {number}{', with the driver' if number == 0 else ''}: {there or 'nothing'}"


def _named(kind: str, indices: Sequence[int]) -> str:
    return f"{kind} {indices[0]}" if len(indices) == 1 else f"{kind}s {indices[0]} to {indices[-1]}"


def _gpus(config: RunConfig, size: ModelSize, hardware: Hardware, placement: Placement) -> Iterator[Account]:
    """Every kind of GPU that the plan knows: an engine's, a rank's, and one that both share."""
    rank = [*rank_items(config, size, on_gpu=True), Item("rank's CUDA context (estimate)", CONTEXT_GIB)]
    engine = engine_items(config, size, hardware.gpu_gib)
    shared = sum(0 < part.gpus < 1 for part in placement.ranks)
    alone = sum(part.gpus >= 1 for part in placement.ranks)
    for_rank = _way_out_of_a_rank(config)
    if shared:
        of_both = _in_turn if engines_sleep(config, placement) else _together
        yield from of_both(f"each of {shared} GPUs with an engine and a rank", engine, rank, hardware.gpu_gib, for_rank)
    of_engines = int(sum(part.gpus for part in placement.engines if part.gpus >= 1))
    if of_engines:
        way_out = "raise engine.tensor_parallel_size, or lower engine.gpu_memory_utilization"
        yield Account(f"each of {of_engines} GPUs of engines", engine, hardware.gpu_gib, way_out)
    if alone:
        yield Account(f"each of {alone} GPUs of learner ranks", rank, hardware.gpu_gib, for_rank)


def _together(title: str, engine: list[Item], rank: list[Item], gpu_gib: float, for_rank: str) -> Iterator[Account]:
    """Of a GPU where an engine samples while a rank trains."""
    way_out = (
        f"{_beside(rank, gpu_gib)}; set run.max_staleness = 0, with which the engine sleeps while the rank trains, "
        f"give engine and rank a GPU each, or {for_rank}"
    )
    yield Account(title, engine + rank, gpu_gib, way_out)


def _in_turn(title: str, engine: list[Item], rank: list[Item], gpu_gib: float, for_rank: str) -> Iterator[Account]:
    """Of a GPU where an engine sleeps while a rank trains: what is awake, and what the other one keeps."""
    kept = [item for item in rank if not item.passes]
    way_out = (
        f"{_beside(kept, gpu_gib)}; give engine and rank a GPU each, or set "
        'learner.deepspeed.zero_optimization.offload_optimizer.device = "cpu"'
    )
    yield Account(f"{title}, while the engine samples", engine + kept, gpu_gib, way_out)
    yield Account(f"{title}, while the rank trains", [*rank, asleep_item()], gpu_gib, for_rank)


def _beside(rank: list[Item], gpu_gib: float) -> str:
    left = max(0.0, 1 - total(rank) / gpu_gib)
    return f"engine.gpu_memory_utilization may be {left:.2f} at most beside this rank"


def _way_out_of_a_rank(config: RunConfig) -> str:
    budget, row = config.learner.max_tokens_per_micro_batch, config.engine.max_model_len
    lower = "learner.max_tokens_per_micro_batch"
    if row > budget:
        lower = f"engine.max_model_len = {row}, for a row of so many tokens passes whole, though {lower} = {budget}"
    return (
        "take more learner.ranks with learner.zero_stage = 3, set learner.gradient_checkpointing = true, or lower "
        f"{lower}"
    )


def _host(
    config: RunConfig, size: ModelSize, hardware: Hardware, placement: Placement, number: int, host: Filled
) -> Account:
    parts = {
        "driver": int(number == 0),
        "engines": len(host.engines),
        "ranks": len(host.ranks),
        "workers": len(host.workers),
        "asleep": sum(0 < part.gpus < 1 for part in placement.engines) if engines_sleep(config, placement) else 0,
    }
    on_gpu = {"engines": placement.engines[0].gpus > 0, "ranks": placement.ranks[0].gpus > 0}
    items = list(host_items(config, size, parts=parts, on_gpu=on_gpu))
    way_out = "spread the parts over more hosts, or take fewer learner.ranks or actors.num_workers, or a smaller model"
    return Account(f"memory of host {number}", items, hardware.host_gib, way_out)


def report(config: RunConfig, size: ModelSize, hardware: Hardware) -> Iterator[str]:
    """Everything in lines. Raises ConfigError, after they were given, for what does not fit."""
    gpus = sum(host.gpus for host in hardware.hosts)
    if gpus and not hardware.gpu_gib:
        raise ConfigError(
            f"how much memory do the {gpus} GPUs have? It cannot be seen from here: give --gpu-memory GIB"
        )
    of_gpus = f" of {hardware.gpu_gib:g} GiB" if gpus else ""
    yield (
        f"{len(hardware.hosts)} hosts of {hardware.host_gib:.1f} GiB with {gpus} GPUs{of_gpus} in all; a model of "
        f"{size.parameters:,} parameters, {size.layers} layers"
    )
    where, accounts = plan(config, size, hardware)
    yield from where
    for account in accounts:
        yield ""
        yield from account.lines()
    if lines := too_small(config, size, accounts):
        raise ConfigError("\n".join(lines))
