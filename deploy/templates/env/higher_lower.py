"""Find a number: every guess is answered by the range that is left."""

import random
import string
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from milepost.envs.answer import read_answer, write_answer


class HigherLower(gymnasium.Env):
    def __init__(self, *, top: int = 15, max_steps: int = 4) -> None:
        self.observation_space = Text(max_length=200, charset=string.printable)
        self.action_space = Text(min_length=0, max_length=200, charset=string.printable)
        self.top, self.max_steps = top, max_steps

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)  # all chance comes from self.np_random: here the start, in step() the episode's luck
        self.secret = int(self.np_random.integers(1, self.top + 1))
        self.low, self.high, self.turn = 1, self.top, 0
        return self._text(), {"anchor": self._text()}

    def step(self, response: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        action = read_answer(response, [str(n) for n in range(1, self.top + 1)])  # None: no valid answer
        guess = int(action or 0)
        self.low = max(self.low, guess + 1) if guess < self.secret else self.low
        self.high = min(self.high, guess - 1) if guess > self.secret else self.high
        won = guess == self.secret
        info = {"anchor": self._text(), "action": action, "action_valid": action is not None, "success": won}
        return self._text(), float(won), won, self.turn >= self.max_steps, info

    def demonstration(self, rng: random.Random, noise: float) -> str:  # only for the small model's warm-up
        return write_answer(str(rng.randint(1, self.top) if rng.random() < noise else (self.low + self.high) // 2))

    def _text(self) -> str:
        return f"A number from {self.low} to {self.high}. Answer like <answer>7</answer>."
