"""How much of a run's trajectories is kept."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TrajectoriesConfig(BaseModel):
    """The record of every episode, for people."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_bytes: int = Field(
        1024**3, ge=0, description="Bound in bytes of the recorded trajectories: the oldest are deleted; 0 records none"
    )
