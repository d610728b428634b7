"""The section `run` of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from milepost.envs.types import Split


class RunSection(BaseModel):
    """The run as a whole: how long, how large, where."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("run", pattern=r"^[a-z0-9][a-z0-9-]{0,40}$", description="Name: last part of the run's id")
    seed: int = Field(0, ge=0, le=2**31, description="Random seed of everything the run draws")
    iterations: int = Field(100, ge=0, description="Iterations: policy updates")
    groups_per_iteration: int = Field(8, ge=1, description="Batch size in groups that one update learns from")
    group_size: int = Field(8, ge=2, le=1024, description="Group size: episodes of one task that are compared")
    max_staleness: int = Field(1, ge=0, description="Staleness bound in policy versions; 0 is on-policy")
    checkpoint_every: int = Field(10, ge=1, description="Checkpoint interval in iterations, at most")
    keep_checkpoints: int = Field(3, ge=1, description="Number of checkpoints kept")
    eval_episodes: int = Field(
        100, ge=0, description="Evaluation episodes per environment and split at a time; 0: never"
    )
    eval_splits: tuple[Split, ...] = Field(
        ("train", "heldout", "ood"), min_length=1, description="Evaluation splits, of those that hold scenarios"
    )
    eval_every: int = Field(0, ge=0, description="Evaluation interval in iterations; 0: before and after training only")
    resume: Literal["never", "auto"] = Field(
        "never",
        description="Resumption without --resume; auto: the newest run of the same configuration in runs_dir goes on",
    )
    runs_dir: str = Field("runs", min_length=1, description="Folder of the run folders")
    stop_grace_s: float = Field(30, gt=0, description="Grace period in seconds that an orderly stop may take")
    stall_timeout_s: float = Field(300, gt=0, description="Stall timeout in seconds in which no episode ends")
    ray_address: str = Field(
        "", description="Ray address; empty: a Ray of its own on this machine; auto: the cluster it is started on"
    )

    @property
    def step_patience_s(self) -> float:
        """Seconds that a stop waits for the step under way: the rest of its grace is for a checkpoint."""
        return self.stop_grace_s / 2

    @field_validator("runs_dir")
    @classmethod
    def _goes_down_only(cls, value: str) -> str:
        if ".." in Path(value).parts:
            raise ValueError("'..' is not allowed here; give an absolute path")
        try:
            return str(Path(value).expanduser())
        except RuntimeError as error:
            raise ValueError(f"{error}; give an absolute path") from error
