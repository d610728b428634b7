"""Settings of an agent program. Loads nothing heavy."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AgentConfig(BaseModel):
    """An agent program in place of an environment: it talks to an OpenAI-compatible endpoint, and earns the reward."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field("", description="Agent function, package.module:function; async def run(task, client)")
    command: tuple[str, ...] = Field(
        (), description="Agent command, started once per episode; the last line it prints is the reward"
    )
    concurrent_episodes: int = Field(
        16, ge=1, description="Concurrent episodes: agent programs that a worker runs side by side"
    )
    max_tokens: int = Field(0, ge=0, description="Token budget of an episode, sampled in all its calls; 0: none")

    @property
    def name(self) -> str:
        """What tasks call it; "" where there is none."""
        return self.path or " ".join(self.command)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.command and not self.command[0]:
            raise ValueError("agent.command begins with an empty text; give the program to start")
        if self.path and self.command:
            raise ValueError("agent.path and agent.command are both set; an episode is played by one of them")
        return self
