"""A game that any text plays: calls of a coin, scored by the parity of the response's length.

Any policy, also a random one, gets rewards that differ between its episodes, so every update has something to learn.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium
from gymnasium.spaces import Text


class CoinEnv(gymnasium.Env):
    """`turns` calls; a call of the side that the seed drew pays `1 / turns`. A step takes `delay_s` seconds."""

    def __init__(self, *, turns: int = 3, delay_s: float = 0.0) -> None:
        self.observation_space = Text(max_length=100)
        self.action_space = Text(min_length=0, max_length=10_000)
        self._turns, self._delay_s = turns, delay_s

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._sides = [int(side) for side in self.np_random.integers(0, 2, size=self._turns)]
        self._turn = self._hits = 0
        return "Call the coin.", {"anchor": "0/0"}

    def step(self, response: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        time.sleep(self._delay_s)
        side = len(response) % 2
        hit = side == self._sides[self._turn]
        self._turn += 1
        self._hits += hit
        done = self._turn == self._turns
        info: dict[str, Any] = {"anchor": f"{self._hits}/{self._turn}", "action": ("heads", "tails")[side]}
        if done:
            info["success"] = 2 * self._hits > self._turns
        return ("Right." if hit else "Wrong."), hit / self._turns, done, False, info
