"""How the policy is trained: processes, optimizer, and when to refuse a step. Loads nothing heavy."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from milepost.envs.types import OptionValue


class LearnerConfig(BaseModel):
    """How the policy is trained: processes, optimizer, and when to refuse a step."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    ranks: int = Field(1, ge=1, description="Data parallel size: learner processes, one GPU each where there are GPUs")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        2, description="ZeRO stage, what is split over ranks: 1 optimizer state, 2 also gradients, 3 also parameters"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Data type of the forward pass; bfloat16 is for GPUs"
    )
    lr: float = Field(1e-6, gt=0, description="Learning rate of AdamW after warm-up")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW, decoupled")
    grad_clip: float = Field(1.0, gt=0, description="Gradient clipping: largest global norm of a step's gradient")
    warmup_steps: int = Field(0, ge=0, description="Learning rate warm-up: optimizer steps of a linear rise")
    decay_steps: int = Field(
        0,
        ge=0,
        description="Learning rate decay: optimizer steps of a linear fall to a tenth after warm-up; 0: constant",
    )
    minibatches: int = Field(
        1,
        ge=1,
        description="Minibatches per update, one optimizer step each; with 1 every ratio is 1 and nothing is clipped, "
        "above 1 costs one more forward pass of all but the first",
    )
    max_tokens_per_micro_batch: int = Field(
        16384,
        ge=2,
        description="Micro-batch size in tokens that pass through the model, padding included; bounds its memory",
    )
    packing: Literal["auto", "tree", "padded"] = Field(
        "auto",
        description="Packing of rows: tree, prefixes that rows share pass through the model once and nothing is "
        "padded, where the model can take it; padded, every row as it is; auto, trees on CPUs alone, where they were "
        "measured",
    )
    gradient_checkpointing: bool = Field(
        False, description="Gradient checkpointing: recompute activations, for less memory at 4/3 of the time"
    )
    parity_limit: float = Field(
        1e-3,
        gt=0,
        description="Parity limit in nats per token: mean |log-prob of learner - of engine| on tokens of the "
        "current version above which a step is refused; 1e-3 suits float32, about 5e-2 bfloat16",
    )
    stop_on_skipped: int = Field(
        3,
        ge=1,
        description="Limit of consecutive skipped steps (loss or gradient not finite), after which training stops",
    )
    collective_timeout_s: float = Field(
        300.0, gt=0, description="Collective timeout in seconds, of every exchange between learner ranks"
    )
    threads: int = Field(0, ge=0, description="CPU threads per rank; 0 leaves it to torch")
    deepspeed: dict[str, OptionValue] = Field(
        {}, description="Further settings of DeepSpeed, by its own names; what has a key here is refused"
    )

    @model_validator(mode="after")
    def _half_precision_keeps_full_gradients(self) -> Self:
        if self.dtype == "bfloat16" and self.zero_stage < 2:
            raise ValueError("dtype bfloat16 needs zero_stage 2 or 3: below, steps with overflow aren't detected")
        return self
