"""Environments whose demonstration fails in one way each."""

# ruff: noqa: ARG002

import random
from typing import Any

from tests.broken_envs import CountingEnv


class ContentExpert(CountingEnv):
    """Says that the task is solved, and not that the episode is over."""

    def demonstration(self, rng: random.Random, noise: float) -> str:
        return "up"

    def step(self, response: str) -> Any:
        observation, reward, _, truncated, info = super().step(response)
        return observation, reward, False, truncated, info | {"success": self.turn >= 2}


class SilentExpert(CountingEnv):
    def demonstration(self, rng: random.Random, noise: float) -> str:
        return ""


class FaintingExpert(CountingEnv):
    def demonstration(self, rng: random.Random, noise: float) -> str:
        raise RuntimeError("no idea")


class LeavingExpert(CountingEnv):
    def demonstration(self, rng: random.Random, noise: float) -> str:
        raise SystemExit(3)

    def close(self) -> None:
        raise SystemExit(4)
