"""`[engine.vllm]` and `[learner.deepspeed]`: settings of those programs that have no name here, by their own names.

What Milepost sets itself is refused, with the key that rules it, and so is a name that they do not know. vLLM's names
are read from its source; DeepSpeed's stand here, since it ignores an unknown one at its top level without a word. Not
promised: that they accept the values, which they judge when they start, nor that a run learns with them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from milepost.actors.engine import EngineConfig
from milepost.actors.installed_vllm import argument_names
from milepost.learner.config import LearnerConfig

_OVER_DATA: Final = "learner.ranks (there is no parallelism but over data)"
_ADAMW: Final = "Milepost (it is PyTorch's fused AdamW)"
_NO_CODE: Final = "nothing (code that comes with a model is never run)"
RULES_OF_VLLM: Final = {
    "model": "model.path",
    "dtype": "engine.dtype",
    "seed": "run.seed",
    "max_model_len": "engine.max_model_len",
    "max_num_seqs": "engine.max_num_seqs",
    "tensor_parallel_size": "engine.tensor_parallel_size",
    "pipeline_parallel_size": "engine.tensor_parallel_size",
    "data_parallel_size": "engine.num_engines",
    "distributed_executor_backend": "engine.tensor_parallel_size",
    "gpu_memory_utilization": "engine.gpu_memory_utilization",
    "weight_transfer_config": "engine.transfer",
    "enforce_eager": "the device (true on CPU)",
    "enable_prefix_caching": "Milepost (always on)",
    "logprobs_mode": "Milepost (of the distribution that is sampled)",
    "disable_log_stats": "Milepost (whose monitoring shows them)",
    "trust_remote_code": _NO_CODE,
    "worker_cls": _NO_CODE,
    "worker_extension_cls": _NO_CODE,
}
"""Argument of vLLM -> what rules it here."""
RULES_OF_DEEPSPEED: Final = {
    "train_batch_size": "run.groups_per_iteration",
    "train_micro_batch_size_per_gpu": "learner.max_tokens_per_micro_batch",
    "gradient_accumulation_steps": "learner.max_tokens_per_micro_batch",
    "managed_gradient_accumulation": "learner.max_tokens_per_micro_batch",
    "gradient_clipping": "learner.grad_clip",
    "optimizer.type": _ADAMW,
    "optimizer.params.lr": "learner.lr",
    "optimizer.params.weight_decay": "learner.weight_decay",
    "optimizer.params.torch_adam": _ADAMW,
    "optimizer.params.fused": _ADAMW,
    "zero_allow_untested_optimizer": _ADAMW,
    "zero_force_ds_cpu_optimizer": _ADAMW,
    "scheduler": "learner.warmup_steps and learner.decay_steps",
    "bf16": "learner.dtype",
    "bfloat16": "learner.dtype",
    "fp16": "learner.dtype",
    "data_types": "learner.dtype",
    "torch_autocast": "learner.dtype",
    "activation_checkpointing": "learner.gradient_checkpointing",
    "steps_per_print": "Milepost (which tells of each step itself)",
    "zero_optimization.stage": "learner.zero_stage",
    "zero_optimization.compute_grad_norm": "Milepost (which judges each step by it)",
    "pipeline": _OVER_DATA,
    "tensor_parallel": _OVER_DATA,
    "expert_parallel": _OVER_DATA,
    "use_data_before_expert_parallelism": _OVER_DATA,
    "seq_parallel_communication_data_type": _OVER_DATA,
}
"""Dotted key of DeepSpeed -> what rules it here."""
KEYS_OF_DEEPSPEED: Final[dict[str, tuple[str, ...]]] = {
    "": (
        *("aio", "checkpoint", "comet", "comms_logger", "communication_data_type", "csv_monitor", "disable_allgather"),
        *("disable_python_gc", "dump_state", "flops_profiler", "gradient_allreduce_op", "gradient_predivide_factor"),
        *("log_level", "memory_breakdown", "optimizer", "prescale_gradients", "tensorboard", "timers"),
        *("wall_clock_breakdown", "wandb", "zero_optimization"),
    ),
    "optimizer": ("params",),
    "optimizer.params": ("amsgrad", "betas", "eps"),
    "zero_optimization": (
        *("allgather_bucket_size", "allgather_partitions", "contiguous_gradients"),
        *("enable_sanity_checks", "ignore_unused_parameters", "leaf_module", "load_from_fp32_weights"),
        *("log_trace_cache_warnings", "memory_efficient_linear", "offload_optimizer", "offload_param", "overlap_comm"),
        *("override_module_apply", "parameter_alignment", "pipeline_loading_checkpoint", "reduce_bucket_size"),
        *("reduce_scatter", "round_robin_gradients", "stage3_allgather_sequential", "stage3_max_live_parameters"),
        *("stage3_max_reuse_distance", "stage3_model_persistence_threshold", "stage3_module_granularity_threshold"),
        *("stage3_param_persistence_threshold", "stage3_prefetch_bucket_size"),
        *("stage3_use_all_reduce_for_fetch_params", "sub_group_size", "use_multi_rank_bucket_allreduce"),
        *("zero_hpz_partition_size", "zero_quantized_gradients", "zero_quantized_nontrainable_weights"),
        "zero_quantized_weights",
    ),
    "zero_optimization.offload_param": (
        *("buffer_count", "buffer_size", "device", "max_in_cpu", "nvme_path", "pin_memory"),
    ),
    "zero_optimization.offload_optimizer": ("device", "pin_memory"),  # its other keys are for an Adam of DeepSpeed's
}
"""Dotted table -> what may be in it; tables that are not named here are passed on as they are."""


def complaints(engine: EngineConfig, learner: LearnerConfig) -> Iterator[str]:
    """A line for each key of the two tables that is refused."""
    for key in engine.vllm:
        yield from _complaint(key, "engine.vllm", "vLLM", RULES_OF_VLLM, argument_names())
    yield from _of_deepspeed(learner.deepspeed, "")


def _of_deepspeed(values: Mapping[str, Any], table: str) -> Iterator[str]:
    for name, value in values.items():
        key = f"{table}.{name}" if table else name
        before = f"{table}." if table else ""
        known = [f"{before}{each}" for each in KEYS_OF_DEEPSPEED[table]]
        refused = list(_complaint(key, "learner.deepspeed", "DeepSpeed", RULES_OF_DEEPSPEED, known))
        yield from refused
        if refused or key not in KEYS_OF_DEEPSPEED:
            continue
        if not isinstance(value, Mapping):
            yield f"learner.deepspeed.{key} = {value!r} is not a table"
            continue
        yield from _of_deepspeed(value, key)


def _complaint(key: str, table: str, program: str, rules: Mapping[str, str], known: Any) -> Iterator[str]:
    if key in rules:
        yield f"{table}.{key} is not passed on to {program}: it is ruled by {rules[key]}"
    elif key not in known:
        close = difflib.get_close_matches(key, [*known, *rules], n=1)
        meant = f"; did you mean {table}.{close[0]}?" if close else ""
        yield f"unknown key {table}.{key}: no setting of {program} that is passed on{meant}"
