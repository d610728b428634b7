"""LoRA: low-rank adapters beside frozen weights, trained in place of the whole policy. Loads nothing heavy."""

from __future__ import annotations

from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

ALL_LINEAR: Final = "all-linear"


class LoraError(ValueError):
    """Adapters and the policy do not fit together; the message says which and what to do."""


class LoraConfig(BaseModel):
    """LoRA (low-rank adapters): which small matrices are trained in place of the whole policy."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rank: int = Field(
        0, ge=0, description="LoRA rank: width of the adapters, which alone are trained; 0 trains the whole policy"
    )
    alpha: float = Field(32.0, gt=0, description="LoRA alpha: adapters are scaled by alpha / rank")
    target_modules: tuple[str, ...] = Field(
        (ALL_LINEAR,),
        min_length=1,
        description='LoRA target modules: names of the linear layers that get adapters, e.g. "q_proj"; all-linear: '
        "every one but the output layer",
    )

    @property
    def scale(self) -> float:
        """What the product of an adapter's two matrices is multiplied by."""
        return self.alpha / self.rank

    @model_validator(mode="after")
    def _is_of_use(self) -> Self:
        if self.rank == 0 and (self.alpha, self.target_modules) != (32.0, (ALL_LINEAR,)):
            raise ValueError("alpha and target_modules have no effect with rank = 0, which trains the whole policy")
        if ALL_LINEAR in self.target_modules and len(self.target_modules) > 1:
            raise ValueError(f"target_modules names {ALL_LINEAR!r} and layers beside it: name the one or the others")
        return self
