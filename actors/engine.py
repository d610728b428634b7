"""What a worker needs of an inference engine, in token ids only; no text passes here and nothing is re-encoded.

`VLLMEngine` (vllm.py) is the implementation; a Ray handle that forwards to one is another. Loads nothing heavy.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal, Protocol, runtime_checkable

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from milepost.envs.types import OptionValue, VersionSpan

Transfer = Literal["auto", "file", "object_store", "nccl"]


class EngineConfig(BaseModel):
    """The inference engines: how many, how large, and how new weights reach them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_engines: int = Field(1, ge=1, description="Number of inference engines, each a full copy of the policy")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Data type of weights and activations"
    )
    max_model_len: int = Field(1024, ge=16, description="Context length, prompt and response together, in tokens")
    max_num_seqs: int = Field(64, ge=1, description="Decoding batch size: requests decoded side by side")
    kv_cache_gib: int = Field(1, ge=1, description="KV cache on CPU, in GiB")
    gpu_memory_utilization: float = Field(
        0.85, gt=0, le=1, description="GPU memory utilization: share for weights and KV cache"
    )
    tensor_parallel_size: int = Field(
        1, ge=1, description="Tensor parallel size: GPUs that one engine's weights are split over"
    )
    num_threads: int = Field(1, ge=1, description="CPU threads per engine (CPU only)")
    transfer: Transfer = Field(
        "auto",
        description="Weight transfer to engines: file, over shared memory on one host; object_store, through Ray's to "
        "several hosts; nccl, between GPUs; auto: file where Ray has one host, else object_store",
    )
    start_timeout_s: float = Field(300, gt=0, description="Start timeout in seconds, until an engine serves")
    request_timeout_s: float = Field(60, gt=0, description="Request timeout in seconds, of one generation")
    update_timeout_s: float = Field(120, gt=0, description="Weight update timeout in seconds")
    vllm: dict[str, OptionValue] = Field(
        {}, description="Further arguments of vLLM's engine, by its own names; what has a key here is refused"
    )


def environment(config: EngineConfig) -> dict[str, str]:
    """Environment variables an engine's process must start with (vLLM reads them at import)."""
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(config.num_threads),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "HF_HUB_OFFLINE": "1",
        "MILEPOST_ENGINE": "1",
    }


class SamplingConfig(BaseModel):
    """How the policy samples. Log-probs are those of the distribution that was sampled from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(1.0, gt=0, le=5, description="Sampling temperature, of rollouts and evaluation")
    max_tokens: int = Field(256, ge=1, description="Response length limit of one turn, in tokens")


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine sampled for one prompt."""

    response_ids: list[int]
    logprobs: list[float]
    """`[len(response_ids)]`: of each sampled token, under the weights that sampled it."""
    versions: list[VersionSpan]
    stopped: bool
    """True if it ends with a stop token, False if it ran into `max_tokens`."""


class EngineError(Exception):
    """The engine did not answer, or not with a completion. Never a statement about the policy."""


class Engine(Protocol):
    """Token ids in, token ids and log-probs out."""

    async def generate(self, prompt_ids: list[int]) -> Completion:
        """Sample one response. Raises EngineError; returns within its request deadline."""
        ...


@runtime_checkable
class Engines(Protocol):
    """Several engines, of which an episode keeps one: that one's prefix cache holds what the episode has said."""

    def for_episode(self) -> AbstractContextManager[Engine]:
        """What one episode asks, from its first prompt to its last."""
        ...
