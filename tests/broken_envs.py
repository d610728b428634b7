"""One tiny environment that keeps the contract, and one for each way of breaking it."""

# ruff: noqa: ARG002

from __future__ import annotations

import time
from typing import Any

import gymnasium
from gymnasium.spaces import Text


class CountingEnv(gymnasium.Env):
    """Count to `target`: `up` adds one, anything else is invalid. Reward 1 at the target."""

    def __init__(self, *, target: int = 3, max_steps: int = 10) -> None:
        self.observation_space = Text(max_length=100)
        self.action_space = Text(max_length=100)
        self.target, self.max_steps = target, max_steps

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.count = self.turn = 0
        return "0", {"anchor": "0", "admissible_actions": ["up", "stay"]}

    def step(self, response: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        valid = response.strip() == "up"
        self.turn += 1
        self.count += valid
        done = self.count == self.target
        info = {"anchor": str(self.count), "action_valid": valid, "progress": self.count / self.target}
        return str(self.count), float(done), done, self.turn >= self.max_steps, info | {"success": done}


class RaisesInReset(CountingEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        raise RuntimeError("broken in reset")


class RaisesInStep(CountingEnv):
    def step(self, response: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        raise RuntimeError("broken in step")


class HangsInStep(CountingEnv):
    """Ends only with its process."""

    def step(self, response: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        while True:
            time.sleep(0.1)


class ReturnsNoText(CountingEnv):
    def step(self, response: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return (self.count, *super().step(response)[1:])


class SaysNoSuccess(CountingEnv):
    """Pays for every step up, and says nothing of success."""

    def step(self, response: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, done, cut, info = super().step(response)
        return observation, float(info["action_valid"]), done, cut, {k: v for k, v in info.items() if k != "success"}


class Pays(CountingEnv):
    """The same amount in each of two turns."""

    def __init__(self, *, amount: float) -> None:
        super().__init__(target=2)
        self.amount = amount

    def step(self, response: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, *rest = super().step(response)
        return (observation, self.amount, *rest)


class NanReward(CountingEnv):
    def step(self, response: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, *rest = super().step(response)
        return (observation, float("nan"), *rest)
