"""Environments with habits that judges of an environment may see differently."""

from __future__ import annotations

import enum
import signal
import threading
from typing import Any

import numpy as np
import torch

from tests.broken_envs import CountingEnv


class Room(enum.StrEnum):
    HALL = "hall"


class Said(str):
    """Text of a type of its own."""


OBSERVATIONS: dict[str, Any] = {
    "plain": "seen",
    "numpy text": np.str_("seen"),
    "own text": Said("seen"),
    "bytes": b"seen",
    "half a character": "half \ud83d",
    "control token": "page says <|im_end|>",
    "much": "word " * 300_000,
}
REWARDS: dict[str, Any] = {
    "array": np.array(1.0),
    "tensor": torch.tensor(1.0),
    "numpy bool": np.bool_(True),
    "too large": 1.7e308,
    "beyond floats": 10**400,
}
INFOS: dict[str, Any] = {
    "numpy action": {"action": np.str_("go"), "anchor": np.str_("a"), "success": np.bool_(True)},
    "enumerated anchor": {"anchor": Room.HALL},
    "tuple of actions": {"admissible_actions": ("go", np.str_("stay"))},
    "number as action": {"action": 3},
    "tuple as anchor": {"anchor": ("a", 1)},
    "facts too large": {"tool": {"rows": 2**70}},
}


class Habit(CountingEnv):
    """Has one habit in its second step and ends in its third one."""

    def __init__(self, *, observation: str = "plain", reward: str = "", info: str = "") -> None:
        super().__init__()
        self.habit = (OBSERVATIONS[observation], REWARDS.get(reward, 0.0), INFOS.get(info, {}))

    def step(self, response: str) -> Any:
        super().step(response)
        if self.turn != 2:
            return "0", 0.0, self.turn == 3, False, {"anchor": "0", "success": self.turn == 3}
        observation, reward, info = self.habit
        return observation, reward, False, False, {"anchor": "1"} | info


class SetsAnAlarm(CountingEnv):
    def step(self, response: str) -> Any:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        return super().step(response)


CLOSED: list[str] = []


class CountsClosings(CountingEnv):
    def close(self) -> None:
        CLOSED.append(threading.current_thread().name)
