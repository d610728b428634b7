"""Environments that care on which thread they are called."""

import sqlite3
import threading
import time
from collections import defaultdict
from typing import Any

from tests.broken_envs import CountingEnv


class Database(CountingEnv):
    """Its connection belongs to the thread that made it."""

    def __init__(self) -> None:
        super().__init__(max_steps=20, target=20)
        self.db = sqlite3.connect(":memory:")

    def reset(self, **arguments: Any) -> Any:
        self.db.execute("create table said (text)")
        return super().reset(**arguments)

    def step(self, response: str) -> Any:
        self.db.execute("insert into said values (?)", (response,))
        return super().step(response)

    def close(self) -> None:
        self.db.close()
        CLOSED.append(threading.current_thread())


class Counts(CountingEnv):
    """Counts in a place of its thread's own."""

    place = threading.local()

    def reset(self, **arguments: Any) -> Any:
        self.place.turn = 0
        return super().reset(**arguments)

    def step(self, response: str) -> Any:
        self.place.turn += 1
        observation, *rest = super().step(response)
        assert self.place.turn == self.turn
        return (observation, *rest)


CLOSED: list[threading.Thread] = []
IN_A_CALL: dict[str, int] = defaultdict(int)


class Slow(CountingEnv):
    """Counts how many of its calls run side by side."""

    lock = threading.Lock()

    def step(self, response: str) -> Any:
        with self.lock:
            IN_A_CALL["now"] += 1
            IN_A_CALL["most"] = max(IN_A_CALL["most"], IN_A_CALL["now"])
        time.sleep(0.01)
        with self.lock:
            IN_A_CALL["now"] -= 1
        return super().step(response)
