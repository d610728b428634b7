"""Two rooms, a locked door and a key, in text: a long way with a single reward at its end.

The player stands in the left room with the key, the goal lies in the right one, and the wall between them has one
locked door. Stepping onto the key takes it; walking into the door with the key opens it (the key stays in the lock),
and the next move goes through. The rooms are drawn from the seed of `reset`, so that the shortest way has a length
between two bounds. Every observation names the walls next to the player and the way to the next thing (key, door,
goal): a very small model can act on that one line, yet fifteen moves or more have to be right before anything is paid.
An answer that is not one of the four words moves nobody, but costs a turn. Not promised: rooms uniform over all of a
size; those whose shortest way has another length are left out.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
from gymnasium.spaces import Text

Cell = tuple[int, int]
Phase = Literal["locked", "key", "open"]

MOVES: dict[str, Cell] = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
"""Canonical action -> the step in (row, column)."""

_PRINTABLE = "".join(map(chr, range(32, 127))) + "\n"


@dataclass(frozen=True, slots=True)
class Rooms:
    """Two empty rooms of `height` x `width` cells beside each other, a wall of one column with a door between them."""

    height: int
    width: int
    start: Cell
    key: Cell
    door: Cell
    goal: Cell

    def is_open(self, cell: Cell, phase: Phase) -> bool:
        """Whether one can stand on `cell`."""
        row, col = cell
        inside = 0 <= row < self.height and 0 <= col <= 2 * self.width
        return inside and (col != self.width or (cell == self.door and phase == "open"))


@dataclass(frozen=True, slots=True)
class State:
    """Where the player stands, and how far the lock is: no key yet, key in hand, door open."""

    cell: Cell
    phase: Phase


def moved(rooms: Rooms, state: State, action: str) -> State:
    """The state after one move of `MOVES`; a move against a wall, or the door without the key, changes nothing."""
    cell = (state.cell[0] + MOVES[action][0], state.cell[1] + MOVES[action][1])
    if cell == rooms.door and state.phase == "key":
        return State(state.cell, "open")
    if not rooms.is_open(cell, state.phase):
        return state
    return State(cell, "key" if state.phase == "locked" and cell == rooms.key else state.phase)


def moves_left(rooms: Rooms, state: State) -> int:
    """Moves of a shortest way from `state` to the goal.

    The rooms are empty and the door is the only way between them, so the way is a chain of Manhattan distances.
    """
    door_to_goal = _distance(rooms.door, rooms.goal)
    if state.phase == "locked":
        return _distance(state.cell, rooms.key) + _distance(rooms.key, rooms.door) + 1 + door_to_goal
    if state.phase == "key":
        return _distance(state.cell, rooms.door) + 1 + door_to_goal
    if state.cell[1] < rooms.width:
        return _distance(state.cell, rooms.door) + door_to_goal
    return _distance(state.cell, rooms.goal)


class KeyDoorText(gymnasium.Env):  # type: ignore[misc]  # gymnasium is untyped for mypy here
    """Two rooms of `height` x `width` cells whose shortest solution takes `min_path` to `max_path` moves.

    Reward 1 on the goal, else 0; the episode is truncated after `max_steps` turns. Raises ValueError for options out of
    range.
    """

    def __init__(
        self, *, height: int = 6, width: int = 4, min_path: int = 15, max_path: int = 20, max_steps: int = 40
    ) -> None:
        if not (2 <= height <= 10 and 2 <= width <= 10):
            raise ValueError(f"height and width must lie in 2..10, they are {height} and {width}")
        if not 1 <= min_path <= 2 * (height + width):  # beyond, rooms that are far enough apart are too rare to draw
            raise ValueError(f"min_path must lie in 1..2 (height + width) = {2 * (height + width)}, it is {min_path}")
        if max_path < max(min_path, height + width):  # below, rooms that are close enough together are
            raise ValueError(f"max_path must be at least {max(min_path, height + width)}, it is {max_path}")
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, it is {max_steps}")
        self.observation_space = Text(max_length=2000, charset=_PRINTABLE)
        self.action_space = Text(max_length=10_000, min_length=0, charset=_PRINTABLE)
        self._height, self._width, self._max_steps = height, width, max_steps
        self._min_path, self._max_path = min_path, max_path

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draw rooms from `seed`."""
        super().reset(seed=seed, options=options)
        self._rooms = self._draw()
        self._state = State(self._rooms.start, "locked")
        self._length = moves_left(self._rooms, self._state)
        self._map_key = hashlib.blake2b(repr(self._rooms).encode(), digest_size=6).hexdigest()
        self._turn = 0
        return f"{_RULES}\n{self._grid()}\n{self._view()}", {
            "anchor": self._anchor(),
            "admissible_actions": list(MOVES),
        }

    def step(self, response: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Make one move if `response` is one; a turn passes in any case."""
        self._turn += 1
        word = response.strip().lower()
        action = word if word in MOVES else None
        if action is not None:
            self._state = moved(self._rooms, self._state, action)
        terminated = self._state.cell == self._rooms.goal
        truncated = not terminated and self._turn >= self._max_steps
        info: dict[str, Any] = {
            "anchor": self._anchor(),
            "action": action,
            "action_valid": action is not None,
            "progress": max(0.0, 1.0 - moves_left(self._rooms, self._state) / self._length),
            "admissible_actions": list(MOVES),
        }
        if terminated or truncated:
            info["success"] = terminated
        return self._view(), float(terminated), terminated, truncated, info

    def demonstration(self, rng: random.Random, noise: float) -> str:
        """A move of a shortest way; with probability `noise` any of the four."""
        if rng.random() < noise:
            return rng.choice(list(MOVES))
        left = {action: moves_left(self._rooms, moved(self._rooms, self._state, action)) for action in MOVES}
        return rng.choice([action for action in MOVES if left[action] == min(left.values())])

    def _draw(self) -> Rooms:
        """Rooms whose shortest way has an allowed length; with any options at least one draw in hundreds is that."""
        while True:
            rows = [int(n) for n in self.np_random.integers(self._height, size=4)]
            start, key, goal = (int(n) for n in self.np_random.integers(self._width, size=3))
            rooms = Rooms(
                height=self._height,
                width=self._width,
                start=(rows[0], start),
                key=(rows[1], key),
                door=(rows[2], self._width),
                goal=(rows[3], self._width + 1 + goal),
            )
            length = moves_left(rooms, State(rooms.start, "locked"))
            if rooms.start != rooms.key and self._min_path <= length <= self._max_path:
                return rooms

    def _anchor(self) -> str:
        row, col = self._state.cell
        return f"{self._map_key}:{row},{col}:{self._state.phase}"

    def _view(self) -> str:
        """`Walls up, left. Key 2 down, 1 right.`"""
        state, rooms = self._state, self._rooms
        row, col = state.cell
        around = {name: (row + dr, col + dc) for name, (dr, dc) in MOVES.items()}
        walls = [name for name, cell in around.items() if cell != rooms.door and not rooms.is_open(cell, "open")]
        name, (to_row, to_col) = self._next()
        down, right = to_row - row, to_col - col
        steps = [f"{abs(down)} {'down' if down > 0 else 'up'}"] * (down != 0)
        steps += [f"{abs(right)} {'right' if right > 0 else 'left'}"] * (right != 0)
        return f"Walls {', '.join(walls) or 'none'}. {name} {', '.join(steps) or 'here'}."

    def _next(self) -> tuple[str, Cell]:
        """What the player has to reach next, and where it is."""
        if self._state.phase == "locked":
            return "Key", self._rooms.key
        if self._state.phase == "key":
            return "Locked door", self._rooms.door
        if self._state.cell[1] < self._width:
            return "Open door", self._rooms.door
        return "Goal", self._rooms.goal

    def _grid(self) -> str:
        signs = {self._rooms.start: "P", self._rooms.key: "K", self._rooms.door: "D", self._rooms.goal: "G"}
        cells = [[(row, col) for col in range(2 * self._width + 1)] for row in range(self._height)]
        return "\n".join(" ".join(signs.get(c, "#" if c[1] == self._width else "_") for c in row) for row in cells)


_RULES = (
    "You are P. Take the key K, open the door D in the wall # with it and walk on to the goal G.\n"
    "Answer with one word: up, down, left or right."
)


def _distance(a: Cell, b: Cell) -> int:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])
