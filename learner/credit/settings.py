"""Settings that several credit strategies share. Each strategy's own stand in its file; nothing here computes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from milepost.learner.credit.baseline import Baseline
from milepost.learner.credit.modulators import ModulatorConfig

Truncation = Literal["bootstrap", "failure"]
"""What a trajectory that was cut off counts as: unfinished, or failed."""


class CreditSettings(BaseModel):
    """What every strategy has."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    invalid_penalty: float = Field(
        0.1, ge=0, description="Format penalty in reward: what each turn without a valid action costs"
    )
    modulators: tuple[ModulatorConfig, ...] = Field(
        (), description='Entropy modulation of advantages, applied in order: [{ name = "aem" }] or [{ name = "empg" }]'
    )


class TrajectorySettings(CreditSettings):
    """Of strategies with a trajectory advantage."""

    baseline: Baseline = Field(
        "grpo",
        description="Advantage estimator of trajectories (group baseline): grpo (R - mean) / std, rloo R - mean "
        "of the others, dr_grpo R - mean",
    )
    w_trajectory: float = Field(1.0, ge=0, description="Weight of the trajectory advantage")


class StepSettings(TrajectorySettings):
    """Of strategies that add a step advantage: `w_trajectory * trajectory advantage + w_step * step advantage`."""

    w_step: float = Field(1.0, ge=0, description="Weight of the step advantage")

    @model_validator(mode="after")
    def _some_weight_is_positive(self) -> Self:
        if self.w_trajectory == 0 and self.w_step == 0:
            raise ValueError("w_trajectory and w_step are both 0: every turn would get 0; raise one of them")
        return self


class GraphSettings(StepSettings):
    """Of strategies that judge turns on a transition graph."""

    truncation: Truncation = Field(
        "failure",
        description="Truncation handling: bootstrap, a trajectory that was cut off is worth what the state it was cut "
        "off in is worth; failure, a time limit is part of the task",
    )

    history_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay factor of transition counts from a task's past groups, per policy version; 0: no history",
    )
