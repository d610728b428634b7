"""Memory of the parts of a run, item by item, in GiB. docs/placement.md has the formulas with their sources.

Weights, gradients and optimizer follow exactly from counts and ZeRO stage; activations, working memory and processes
are estimates. Not promised: fragmentation, or what other programs hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from milepost.cluster.placement.size import ModelSize
from milepost.cluster.settings.config import RunConfig
from milepost.learner.credit.modulators import needs
from milepost.learner.credit.strategies.registry import build
from milepost.learner.zero.output_layer import CHUNK_TOKENS

GIB: Final = 2**30
_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
_BUCKET: Final = 5e8
"""Elements in which DeepSpeed exchanges gradients, by default."""
_LIVE: Final = 1e9
"""Elements that ZeRO-3 keeps gathered at most, by default."""
CONTEXT_GIB: Final = 1.5
"""Of a process on a GPU: CUDA's context, and workspaces of cuBLAS and NCCL. An estimate."""
ENGINE_WORK_GIB: Final = 3.0
"""Of an engine on a GPU: its context, activations of a prefill, CUDA graphs. An estimate."""
PROCESS_GIB: Final = 1.0
"""Of the host, for a process with PyTorch, transformers and Ray. An estimate."""
DRIVER_GIB: Final = 2.0
"""Of the driver's host, for the driver and Ray's own processes. An estimate."""


@dataclass(frozen=True, slots=True)
class Item:
    """One line of an account."""

    what: str
    gib: float
    passes: bool = False
    """Whether it is there only while something passes through a model."""


def total(items: list[Item]) -> float:
    """GiB of all items."""
    return sum(item.gib for item in items)


def rank_items(config: RunConfig, size: ModelSize, *, on_gpu: bool) -> list[Item]:
    """Of one learner rank, where its models lie: on its GPU, or without one in its host's memory."""
    wide, stage = _BYTES[config.learner.dtype], config.learner.zero_stage
    activations = _activations(config, size, wide)
    asked = _gib(wide * size.parameters) if has_reference(config) and stage < 3 else 0.0
    to_output_layer = 0 if size.adapters else 4 * size.hidden
    items = [
        *([] if on_gpu and _offload_device(config, "offload_param") else _weights(config, size)),
        *([] if on_gpu and _offload_device(config, "offload_optimizer") else _of_optimizer(config, size)),
        Item("buckets of ZeRO", _gib(wide * _bucket_elements(config, size))),
        Item("activations (estimate)", activations, passes=True),
        # on a GPU it comes when nothing else passes, and goes again
        Item(f"reference, {config.learner.dtype}", max(0.0, asked - activations) if on_gpu else asked, passes=on_gpu),
        Item("log-probs (estimate)", _gib((wide * CHUNK_TOKENS + to_output_layer) * size.vocabulary), passes=True),
    ]
    return [item for item in items if item.gib]


def _weights(config: RunConfig, size: ModelSize) -> Iterator[Item]:
    """What DeepSpeed's `offload_param` moves away."""
    learner, wide = config.learner, _BYTES[config.learner.dtype]
    split = learner.ranks if learner.zero_stage == 3 else 1
    held = size.parameters * (1 + has_own_critic(config)) + size.adapters
    yield Item(f"weights, {learner.dtype}", _gib(wide * held, split))
    if has_reference(config) and learner.zero_stage == 3:
        yield Item(f"reference's share, {learner.dtype}", _gib(wide * size.parameters, split))


def _of_optimizer(config: RunConfig, size: ModelSize) -> Iterator[Item]:
    """What `offload_optimizer` moves away."""
    stage, ranks, parameters = config.learner.zero_stage, config.learner.ranks, _trained(config, size)
    yield Item("gradients, float32", _gib(4 * parameters, ranks if stage >= 2 else 1))
    yield Item("master weights, float32", _gib(4 * parameters, ranks) if stage else 0.0)
    yield Item("Adam's moments, float32", _gib(8 * parameters, ranks if stage else 1))


def _trained(config: RunConfig, size: ModelSize) -> int:
    """Parameters with an optimizer."""
    return size.trained + (size.parameters if has_own_critic(config) else 0)


def _zero_setting(config: RunConfig, key: str, default: Any) -> Any:
    """What `[learner.deepspeed.zero_optimization]` says."""
    table: Any = config.learner.deepspeed.get("zero_optimization", {})
    return table.get(key, default)


def _offload_device(config: RunConfig, table: str) -> str | None:
    """`cpu` or `nvme` where DeepSpeed is told by this table to keep something away from the GPU."""
    device = _zero_setting(config, table, {}).get("device", "none")
    return None if device == "none" else str(device)


def has_own_critic(config: RunConfig) -> bool:
    """Whether a rank trains a second model."""
    reads_critic = "critic" in needs(build(config.credit), config.credit.modulators)
    return reads_critic and config.critic.trunk == "own"


def has_reference(config: RunConfig) -> bool:
    """Whether a rank holds the run's first policy beside the one that it trains; adapters are switched off instead."""
    return config.loss.kl_coef > 0 and not config.lora.rank


def pass_tokens(config: RunConfig) -> int:
    """Tokens of the largest pass: a full micro-batch, or one row that is longer than it."""
    return max(config.learner.max_tokens_per_micro_batch, config.engine.max_model_len)


def _bucket_elements(config: RunConfig, size: ModelSize) -> float:
    """Of the larger of two trained models, and what ZeRO-3 gathers of one."""
    trained = size.parameters if has_own_critic(config) else size.trained
    bucket: float = min(trained, _zero_setting(config, "reduce_bucket_size", _BUCKET))
    live: float = min(size.parameters, _zero_setting(config, "stage3_max_live_parameters", _LIVE))
    return {0: 0.0, 3: bucket + live}.get(config.learner.zero_stage, bucket)


def _activations(config: RunConfig, size: ModelSize, wide: int) -> float:
    """Inputs of every layer and all of one, where activations are recomputed; else all of every layer."""
    tokens, layer = pass_tokens(config), 8 * size.hidden + 2 * size.kv_heads * size.head_dim + 4 * size.intermediate
    if config.learner.gradient_checkpointing:
        return _gib(wide * tokens * (size.layers * size.hidden + layer))
    return _gib(wide * tokens * size.layers * layer)


def engine_weights(config: RunConfig, size: ModelSize) -> Item:
    """Of one engine's share of the policy: on each of its GPUs, or on its host."""
    engine = config.engine
    return Item(
        f"engine's weights, {engine.dtype}",
        _gib(_BYTES[engine.dtype] * size.parameters, engine.tensor_parallel_size),
    )


def asleep_item() -> Item:
    """Of an engine that sleeps, on its GPU."""
    return Item("engine asleep: context, CUDA graphs (estimate)", ENGINE_WORK_GIB)


def sequence_gib(config: RunConfig, size: ModelSize) -> float:
    """KV cache of one sequence of `engine.max_model_len` tokens on each GPU of an engine."""
    engine = config.engine
    heads = max(1.0, size.kv_heads / engine.tensor_parallel_size)
    return _gib(2 * size.layers * heads * size.head_dim * _BYTES[engine.dtype] * engine.max_model_len)


def engine_items(config: RunConfig, size: ModelSize, gpu_gib: float) -> list[Item]:
    """Of one engine on each of its GPUs. The KV cache gets what `engine.gpu_memory_utilization` leaves: negative where
    even the rest has no room.
    """
    weights = engine_weights(config, size)
    kv_gib = config.engine.gpu_memory_utilization * gpu_gib - weights.gib - ENGINE_WORK_GIB
    return [weights, Item("engine's working memory (estimate)", ENGINE_WORK_GIB), Item("engine's KV cache", kv_gib)]


def host_items(config: RunConfig, size: ModelSize, *, parts: dict[str, int], on_gpu: dict[str, bool]) -> Iterator[Item]:
    """Of one host that holds so many `driver`, `engines`, `ranks` and `workers`, and of the engines so many `asleep`.

    Args:
        on_gpu: of `engines` and `ranks`, whether their models lie on GPUs.
    """
    wide = _BYTES[config.learner.dtype]
    if parts["driver"]:
        yield Item("driver and Ray (estimate)", DRIVER_GIB)
        if not config.buffer.url_env:
            yield Item("embedded Redis at its limit", config.buffer.maxmemory_bytes / GIB)
        if parts["ranks"] and config.engine.transfer != "nccl":
            yield Item("weights on their way: two files, rank 0's copy", _gib(3 * wide * size.trained))
    if processes := parts["engines"] + parts["ranks"] + parts["workers"]:
        yield Item(f"{processes} processes (estimate)", PROCESS_GIB * processes)
    if parts["ranks"]:
        yield from _of_ranks(config, size, parts["ranks"], on_gpu=on_gpu["ranks"])
    weights = engine_weights(config, size)
    if parts["asleep"]:
        yield Item(f"weights of {parts['asleep']} engines while they sleep", parts["asleep"] * weights.gib)
    if parts["engines"] and not on_gpu["engines"]:
        yield Item(weights.what, parts["engines"] * weights.gib)
        yield Item("KV cache of engines", parts["engines"] * config.engine.kv_cache_gib)


def _of_ranks(config: RunConfig, size: ModelSize, ranks: int, *, on_gpu: bool) -> Iterator[Item]:
    """What so many ranks on one host hold of its memory. With ZeRO 3 a model is split as it is made."""
    learner = config.learner
    if not on_gpu:
        yield Item(f"models of {ranks} ranks", ranks * total(rank_items(config, size, on_gpu=False)))
        return
    if learner.zero_stage < 3:  # one model after the other; the last one, a reference, stays
        whole = _gib(_BYTES[learner.dtype] * size.parameters)
        yield Item(f"models while {ranks} ranks load them, {learner.dtype}", ranks * whole)
    for table, moved in (("offload_param", _weights), ("offload_optimizer", _of_optimizer)):
        if _offload_device(config, table) == "cpu":
            yield Item(f"{table} of {ranks} ranks", ranks * total([*moved(config, size)]))


def _gib(count: float, ranks: int = 1) -> float:
    return count / ranks / GIB
