"""A server of OpenEnv: find a number from 1 to 7; every guess is answered by the range that is left."""

from __future__ import annotations

import random
import time
from typing import Any

from openenv.core import Action, Environment, Observation, State, create_app

OPEN: list[HigherLower] = []
"""The sessions that are under way."""


class Guess(Action):  # type: ignore[misc]
    guess: int


class Range(Observation):  # type: ignore[misc]
    text: str


class HigherLower(Environment):  # type: ignore[misc]
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        OPEN.append(self)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Range:  # noqa: ARG002
        self.secret, self.low, self.high, self.steps = random.Random(seed).randint(1, 7), 1, 7, 0
        return self._range(0.0, False)

    def step(self, action: Guess, timeout_s: float | None = None, **_: Any) -> Range:  # noqa: ARG002
        self.steps += 1
        if action.guess == 99:
            time.sleep(2)
        if action.guess == 98:
            raise ValueError("broken on purpose")
        self.low = max(self.low, action.guess + 1) if action.guess < self.secret else self.low
        self.high = min(self.high, action.guess - 1) if action.guess > self.secret else self.high
        won = action.guess == self.secret
        return self._range(float(won), won)

    @property
    def state(self) -> State:
        return State(step_count=self.steps)

    def close(self) -> None:
        OPEN.remove(self)

    def _range(self, reward: float, done: bool) -> Range:
        return Range(text=f"A number from {self.low} to {self.high}.", reward=reward, done=done)


app = create_app(HigherLower, Guess, Range, max_concurrent_envs=32)
