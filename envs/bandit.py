"""A two-armed bandit after RAGEN (arXiv 2504.20073): one arm pays little and surely, the other more on average.

The names say which is which (a Phoenix is calm, a Dragon wild); the names and their order are drawn from the seed. It
is the smallest task that shows risk taking: the better arm fails three times in four. The names and payouts are ours.
"""

from __future__ import annotations

import random
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from milepost.envs.answer import read_answer, write_answer

CALM_NAMES = ("Phoenix", "Turtle", "Willow", "Harbour", "Meadow", "Lantern")
WILD_NAMES = ("Dragon", "Volcano", "Tempest", "Comet", "Avalanche", "Tiger")
CALM_REWARD = 0.1
WILD_REWARD = 1.0
WILD_PROBABILITY = 0.25

_PRINTABLE = "".join(map(chr, range(32, 127))) + "\n"


class TwoArmedBandit(gymnasium.Env):  # type: ignore[misc]  # gymnasium is untyped for mypy here
    """`max_steps` pulls. What there is to learn from is what they pay, as in any bandit.

    For people, success means that more than half of the turns pulled the arm with the higher mean. The calm arm pays
    0.1; the wild one pays 1 with probability 0.25. `swapped` gives the calm names to the wild arm: a policy that
    learned names instead of payouts fails there. Raises ValueError for options out of range.
    """

    def __init__(self, *, max_steps: int = 1, swapped: bool = False) -> None:
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, it is {max_steps}")
        self.observation_space = Text(max_length=500, charset=_PRINTABLE)
        self.action_space = Text(max_length=10_000, min_length=0, charset=_PRINTABLE)
        self._max_steps, self._swapped = max_steps, swapped

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draw the names and their order from `seed`."""
        super().reset(seed=seed, options=options)
        calm, wild = (str(self.np_random.choice(names)) for names in (CALM_NAMES, WILD_NAMES))
        if self._swapped:
            calm, wild = wild, calm
        self._wild = wild.lower()
        self._names = [calm, wild] if self.np_random.random() < 0.5 else [wild, calm]
        self._turn = self._wild_pulls = 0
        first, second = self._names
        observation = (
            f"Two slot machines: {first} and {second}. One pays little but surely, the other more but rarely.\n"
            f"Win as much as you can. Answer <answer>{first}</answer> or <answer>{second}</answer>."
        )
        return observation, {"anchor": self._anchor(), "admissible_actions": self._actions()}

    def step(self, response: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Pull the arm that `response` answers; a turn passes in any case."""
        self._turn += 1
        action = read_answer(response, self._actions())
        reward = self._pull(action) if action is not None else 0.0
        terminated = self._turn >= self._max_steps
        info: dict[str, Any] = {
            "anchor": self._anchor(),
            "action": action,
            "action_valid": action is not None,
            "admissible_actions": self._actions(),
        }
        if terminated:
            info["success"], info["success_trains"] = self._wild_pulls * 2 > self._turn, False
        pulled = "No machine was pulled." if action is None else f"{action.capitalize()} paid {reward:g}."
        return f"{pulled} Again?", reward, terminated, False, info

    def demonstration(self, rng: random.Random, noise: float) -> str:
        """The arm with the higher mean; with probability `noise` either of the two."""
        action = rng.choice(self._actions()) if rng.random() < noise else self._wild
        return write_answer(action.capitalize())

    def _pull(self, action: str) -> float:
        if action != self._wild:
            return CALM_REWARD
        self._wild_pulls += 1
        return WILD_REWARD if self.np_random.random() < WILD_PROBABILITY else 0.0

    def _actions(self) -> list[str]:
        return [name.lower() for name in self._names]

    def _anchor(self) -> str:
        return "|".join(sorted(self._actions()))
