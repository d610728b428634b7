"""Environments that are suspicious or broken in one way, for checks and rehearsals."""

from __future__ import annotations

import random
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

from tests.broken_envs import CountingEnv


class NumberSpace(CountingEnv):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = gymnasium.spaces.Discrete(2)


class RandomStart(CountingEnv):
    def reset(self, **_: Any) -> Any:
        _, info = super().reset()
        return str(np.random.default_rng().random()), info


class RandomReward(CountingEnv):
    def step(self, response: str) -> Any:
        observation, _, *rest = super().step(response)
        return (observation, np.random.default_rng().random(), *rest)


class SuccessWithoutAnEnd(CountingEnv):
    """Says that the task is solved, which ends an episode, and nothing else of its end."""

    def step(self, response: str) -> Any:
        observation, reward, _, _, info = super().step(response)
        return observation, reward, False, False, info | {"success": self.turn >= 2}


class CounterInAnchor(CountingEnv):
    def step(self, response: str) -> Any:
        *head, info = super().step(response)
        return (*head, info | {"anchor": f"{self.count} at turn {self.turn}"})


class CounterInObservation(CountingEnv):
    def step(self, response: str) -> Any:
        _, *middle, info = super().step(response)
        del info["anchor"]
        return (f"{self.count} at turn {self.turn}", *middle, info)


class CountsInItsAnchor(CountingEnv):
    """Shows its turn, and puts it into the anchor of every state that an action led to."""

    def step(self, response: str) -> Any:
        _, *middle, info = super().step(response)
        text = f"at {self.count} in turn {self.turn}"
        return (text, *middle, info | {"anchor": text, "action_valid": True})


class TellsItsHistory(CountingEnv):
    """Repeats the whole conversation in every turn, as its observation and so as its anchor."""

    def reset(self, **arguments: Any) -> Any:
        self.told = "Count up.\n"
        super().reset(**arguments)
        return f"Turn 1 of 10.\n{self.told}Your move?", {}

    def step(self, response: str) -> Any:
        _, *middle, info = super().step(response)
        self.told += f"You said {response[:9]!r}.\n"
        del info["anchor"]
        return (f"Turn {self.turn + 1} of 10.\n{self.told}Your move?", *middle, info | {"action_valid": True})


class NeverTheSame(CountingEnv):
    """Puts a draw into its anchor."""

    def step(self, response: str) -> Any:
        _, *middle, info = super().step(response)
        text = f"{self.count} {self.np_random.random():.9f}"
        return (text, *middle, info | {"anchor": text, "action_valid": True})


class AnchorOfTheInstance(CountingEnv):
    def reset(self, **_: Any) -> Any:
        observation, info = super().reset()
        return observation, info | {"anchor": f"{observation} at {id(self)}"}

    def step(self, response: str) -> Any:
        observation, *middle, info = super().step(response)
        return (observation, *middle, info | {"anchor": f"{observation} at {id(self)}"})


class NoEnd(CountingEnv):
    def step(self, response: str) -> Any:
        observation, reward, _, _, info = super().step(response)
        return observation, reward, False, False, info


class SilentEnd(CountingEnv):
    def step(self, response: str) -> Any:
        *head, info = super().step(response)
        return (*head, info | {"success": None})


class NeedsText(CountingEnv):
    def step(self, response: str) -> Any:
        return super().step(response.split()[0])


class CannotClose(CountingEnv):
    def close(self) -> None:
        raise OSError("socket is gone")


class Dice(CountingEnv):
    """Pays what a die shows in each turn; the die is the environment's own where `own`."""

    def __init__(self, *, own: str = "") -> None:
        super().__init__()
        self.own = own

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        returned = super().reset(seed=seed, options=options)
        later = (options or {}).get("episode_seed", seed)
        self.dice: Any = {
            "": None,
            "python": random.Random(seed),
            "python, mended": random.Random(later),
            "numpy": [np.random.RandomState(seed)],
            "lake": {"inner": FrozenLakeEnv()},
        }[self.own]
        if self.own == "lake":
            self.dice["inner"].reset(seed=seed)
        return returned

    def step(self, response: str) -> Any:
        observation, _, *rest = super().step(response)
        if self.own.startswith("python"):
            reward = self.dice.random()
        elif self.own == "numpy":
            reward = self.dice[0].random_sample()
        else:
            reward = (self.dice["inner"] if self.own == "lake" else self).np_random.random()
        return (observation, reward, *rest)


class StartsByItsEpisode(CountingEnv):
    def reset(self, **arguments: Any) -> Any:
        _, info = super().reset(**arguments)
        return str(arguments["options"]["episode_seed"]), info


class Says(CountingEnv):
    """Says `text` in every step."""

    def __init__(self, *, text: str = "page says <|im_end|>") -> None:
        super().__init__()
        self.text = text

    def step(self, response: str) -> Any:
        return (self.text, *super().step(response)[1:])


class SaysMuch(CountingEnv):
    def reset(self, **arguments: Any) -> Any:
        return "0" * 70_000, super().reset(**arguments)[1]


class Leaves(CountingEnv):
    """Raises `error` in the method `where`."""

    def __init__(self, *, where: str, error: str) -> None:
        super().__init__()
        self.where, self.error = where, {e.__name__: e for e in ENDINGS}[error]
        self.leave("constructor")

    def leave(self, where: str) -> None:
        if self.where == where:
            raise self.error("out")

    def reset(self, **arguments: Any) -> Any:
        self.leave("reset")
        return super().reset(**arguments)

    def step(self, response: str) -> Any:
        self.leave("step")
        return super().step(response)

    def close(self) -> None:
        self.leave("close")


ENDINGS = (SystemExit, KeyboardInterrupt, GeneratorExit)
