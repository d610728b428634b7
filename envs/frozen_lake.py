"""FrozenLake in text: Gymnasium's own lake, seen as a grid of letters and walked by `<answer>Right</answer>`.

The map is drawn from the seed of `reset`, as in RAGEN (arXiv 2504.20073). The first observation holds the rules and the
whole map; every observation says what lies around the player and where the goal is, so a turn costs few tokens and even
a very small model can see what it stands before. An answer that is not one of the four moves moves nobody, but costs a
turn.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from typing import Any

import gymnasium
from gymnasium.envs.toy_text.frozen_lake import DOWN, LEFT, RIGHT, UP, FrozenLakeEnv, generate_random_map
from gymnasium.spaces import Text

from milepost.envs.answer import read_answer, write_answer
from milepost.envs.chance import EPISODE_SEED

Cell = tuple[int, int]

MOVES: dict[str, tuple[int, Cell]] = {
    "up": (UP, (-1, 0)),
    "down": (DOWN, (1, 0)),
    "left": (LEFT, (0, -1)),
    "right": (RIGHT, (0, 1)),
}
"""Canonical action -> Gymnasium's action number and the step in (row, column)."""

_SYMBOLS = {"S": "_", "F": "_", "H": "O", "G": "G"}
_WORDS = {"S": "ice", "F": "ice", "H": "hole", "G": "goal"}
_PRINTABLE = "".join(map(chr, range(32, 127))) + "\n"


class FrozenLakeText(gymnasium.Env):  # type: ignore[misc]  # gymnasium is untyped for mypy here
    """A `size` x `size` lake in which a cell is frozen with probability `frozen_share`; there is always a way.

    Reward 1 on the goal, else 0; the episode is truncated after `max_steps` turns. On a slippery lake a move goes
    where it should with probability 1/3 and to either side with 1/3 each. Raises ValueError for options out of range.
    """

    def __init__(
        self, *, size: int = 4, frozen_share: float = 0.8, slippery: bool = False, max_steps: int = 10
    ) -> None:
        if not 2 <= size <= 12:
            raise ValueError(f"size must lie in 2..12, it is {size}")
        if not 0.5 <= frozen_share <= 1.0:  # below, most large maps have no way and drawing one takes for ever
            raise ValueError(f"frozen_share must lie in [0.5, 1], it is {frozen_share}")
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, it is {max_steps}")
        self.observation_space = Text(max_length=2000, charset=_PRINTABLE)
        self.action_space = Text(max_length=10_000, min_length=0, charset=_PRINTABLE)
        self._size, self._frozen_share, self._slippery, self._max_steps = size, frozen_share, slippery, max_steps

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draw a map from `seed`, and slips from the option `episode_seed`, else from `seed` as well."""
        super().reset(seed=seed, options=options)
        map_seed, slip_seed = (int(n) for n in self.np_random.integers(2**31, size=2))
        self._map = generate_random_map(self._size, self._frozen_share, map_seed)
        self._map_key = hashlib.blake2b("".join(self._map).encode(), digest_size=6).hexdigest()
        self._distance = distances_to_goal(self._map)
        self._lake = FrozenLakeEnv(desc=self._map, is_slippery=self._slippery)
        self._lake.reset(seed=(options or {}).get(EPISODE_SEED, slip_seed))  # its generator is one of its own
        self._turn = 0
        return f"{self._rules()}\n{self._grid()}\n{self._surroundings()}", {
            "anchor": self._anchor(),
            "admissible_actions": list(MOVES),
        }

    def step(self, response: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Walk one cell if `response` answers a move; a turn passes in any case."""
        self._turn += 1
        action = read_answer(response, tuple(MOVES))
        reward, terminated = 0.0, False
        if action is not None:
            _, reward, terminated, _, _ = self._lake.step(MOVES[action][0])
        truncated = not terminated and self._turn >= self._max_steps
        info: dict[str, Any] = {
            "anchor": self._anchor(),
            "action": action,
            "action_valid": action is not None,
            "progress": self._progress(),
            "admissible_actions": list(MOVES),
        }
        if terminated or truncated:
            info["success"] = self._map[self._cell[0]][self._cell[1]] == "G"
        return self._surroundings(), float(reward), bool(terminated), truncated, info

    def demonstration(self, rng: random.Random, noise: float) -> str:
        """A move along a shortest way around the holes; with probability `noise` any of the four."""
        if rng.random() < noise:
            return write_answer(rng.choice(list(MOVES)).capitalize())
        row, col = self._cell
        far = self._size**2
        after = {name: self._distance.get((row + dr, col + dc), far) for name, (_, (dr, dc)) in MOVES.items()}
        best = [name for name, distance in after.items() if distance == min(after.values())]
        return write_answer(rng.choice(best).capitalize())

    @property
    def _cell(self) -> Cell:
        row, col = divmod(int(self._lake.s), self._size)
        return row, col

    def _anchor(self) -> str:
        return "{}:{},{}".format(self._map_key, *self._cell)

    def _progress(self) -> float:
        start = self._distance[(0, 0)]
        return min(1.0, max(0.0, 1.0 - self._distance.get(self._cell, start) / start))

    def _rules(self) -> str:
        slippery = " The ice is slippery: you may slide to either side." if self._slippery else ""
        return (
            f"You are P. Walk over the ice _ to the goal G, never into a hole O.{slippery}\n"
            "Answer <answer>Up</answer>, <answer>Down</answer>, <answer>Left</answer> or <answer>Right</answer>."
        )

    def _surroundings(self) -> str:
        """`Up wall, down ice, left wall, right hole. Goal: 3 down, 2 right.`"""
        row, col = self._cell
        around = ", ".join(f"{name} {self._word(row + dr, col + dc)}" for name, (_, (dr, dc)) in MOVES.items())
        goal_row, goal_col = next(cell for cell, distance in self._distance.items() if distance == 0)
        down, right = goal_row - row, goal_col - col
        steps = [f"{abs(down)} {'down' if down > 0 else 'up'}"] * (down != 0)
        steps += [f"{abs(right)} {'right' if right > 0 else 'left'}"] * (right != 0)
        return f"{around.capitalize()}. Goal: {', '.join(steps) or 'here'}."

    def _word(self, row: int, col: int) -> str:
        inside = 0 <= row < self._size and 0 <= col < self._size
        return _WORDS[self._map[row][col]] if inside else "wall"

    def _grid(self) -> str:
        rows = [[_SYMBOLS[letter] for letter in row] for row in self._map]
        row, col = self._cell
        rows[row][col] = "P"
        return "\n".join(" ".join(symbols) for symbols in rows)


def distances_to_goal(lake: list[str]) -> dict[Cell, int]:
    """Moves from every cell to the goal `G` around the holes `H`; cells without a way, and holes, are missing."""
    open_cells = {(r, c) for r, row in enumerate(lake) for c, letter in enumerate(row) if letter != "H"}
    goal = next((r, c) for r, c in open_cells if lake[r][c] == "G")
    distances = {goal: 0}
    frontier = deque([goal])
    while frontier:
        row, col = frontier.popleft()
        for _, (dr, dc) in MOVES.values():
            cell = (row + dr, col + dc)
            if cell in open_cells and cell not in distances:
                distances[cell] = distances[(row, col)] + 1
                frontier.append(cell)
    return distances
