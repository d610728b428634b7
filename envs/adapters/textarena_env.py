"""Games of TextArena: puzzles for one player, and games for two against an opponent that draws its moves.

The policy is the first player. It is told what the game tells it, each message once; moves stand in square brackets.
TextArena draws from Python's one generator `random`: while a game moves, that is this game's own, and games move one
at a time in a process. Not promised: that a move of the opponent is a good one, or that a game's state holds nothing
of its history: it is what the package calls its state.
"""

from __future__ import annotations

import hashlib
import random
import re
import string
import threading
from typing import Any, Literal, Self

import gymnasium
from gymnasium.spaces import Text

from milepost.envs.adapters.foreign import foreign

INSTALL = "pip install 'milepost[textarena]'"
_SPACE = Text(min_length=0, max_length=100_000, charset=string.printable)
_MOVE = re.compile(r"\[[^\[\]]+\]")
_OFFERED = re.compile(r"(?:available|valid) (?:moves|actions)[^:\n]*:([^\n]*)", re.IGNORECASE)
_COUNTERS = {"moves_made", "num_turns", "move_count"}
"""What games keep in their states though it only counts moves: no part of an anchor."""
_ONE_MOVES = threading.Lock()


class _OwnLuck:
    """Python's generator `random` as the own one of whoever enters."""

    def __init__(self, seed: int) -> None:
        self._state = random.Random(seed).getstate()

    def __enter__(self) -> Self:
        _ONE_MOVES.acquire()
        self._others = random.getstate()
        random.setstate(self._state)
        return self

    def __exit__(self, *_: object) -> None:
        self._state = random.getstate()
        random.setstate(self._others)
        _ONE_MOVES.release()


class TextArenaGame(gymnasium.Env):  # type: ignore[misc]  # gymnasium is untyped for mypy here
    """The game that TextArena calls `game`, such as "FrozenLake-v0", made with its own options `config`.

    `opponent` "random" is for games of two that list the moves to choose from. The reward comes at the end and is the
    package's: 1 for a win; a share of the way for some puzzles, -1 for a lost game or for a second invalid move in a
    row. Success is a reward of 1; the cohort is the game. Raises ImportError without the package, ValueError for a game
    that it cannot make or play so.
    """

    def __init__(
        self,
        *,
        game: str = "FrozenLake-v0",
        config: dict[str, Any] | None = None,
        opponent: Literal["none", "random"] = "none",
    ) -> None:
        self.observation_space = self.action_space = _SPACE
        self._arena = foreign("textarena", INSTALL)
        self._name, self._players = game, 1 if opponent == "none" else 2
        try:
            bare = self._arena.make(f"{game}-raw", **config or {})
            self._game = self._arena.wrappers.ActionFormattingWrapper(bare)
            self._begin(0)
        except Exception as error:  # assertions and look-ups that fail; what they say may have many lines
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"TextArena cannot begin {game} with opponent = {opponent!r}: {said}") from error
        if self._players == 2 and not self._offered():
            raise ValueError(f"TextArena's {game} lists no moves that an opponent could draw from")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """The game that `seed` makes; later luck, and the opponent's, comes from the episode's seed."""
        super().reset(seed=seed, options=options)
        self._begin(int(self.np_random.integers(2**31)))
        self._luck = _OwnLuck((options or {}).get("episode_seed", int(self.np_random.integers(2**31))))
        offered = self._offered()
        return self._heard(), {"anchor": self._anchor(), "cohort": self._name, "admissible_actions": offered}

    def step(self, response: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Make the policy's move, and then the opponent's."""
        move = self._game.action(response)
        with self._luck:
            ended = self._game.step(response)[0]
            state = self._game.state
            valid = state.error_count == 0 and not state.game_info[0]["invalid_move"]
            while not ended and state.current_player_id != 0:
                ended = self._game.step(random.choice(self._offered()))[0]
        reward = float(state.rewards[0]) if ended else 0.0
        info: dict[str, Any] = {"anchor": self._anchor(), "action_valid": valid, "success": ended and reward >= 1.0}
        info["admissible_actions"] = [] if ended else self._offered()
        if valid:
            info["action"] = " ".join(_MOVE.findall(move)).lower()
        said = self._heard()
        return f"{said}\n{state.game_info[0].get('reason', '')}" if ended else said, reward, ended, False, info

    def _begin(self, seed: int) -> None:
        with _OwnLuck(seed):
            self._game.reset(num_players=self._players, seed=seed)

    def _heard(self) -> str:
        """What the policy has not been told yet, without its own words."""
        state, kinds = self._game.state, self._arena.ObservationType
        heard, state.observations[0] = state.observations[0], []
        texts = [text for sender, text, kind in heard if sender == 1 or kind is not kinds.PLAYER_ACTION]
        return "\n".join(texts)

    def _offered(self) -> list[str]:
        """The moves that the game listed last to the player whose turn it is."""
        told = self._game.state.observations[self._game.state.current_player_id]
        lists = [_MOVE.findall(line) for _, text, _ in told for line in _OFFERED.findall(text)]
        return [moves for moves in lists if moves][-1] if any(lists) else []

    def _anchor(self) -> str:
        state = self._game.state
        held = {name: value for name, value in (state.game_state or {}).items() if name not in _COUNTERS}
        digest = hashlib.blake2b(repr(held).encode(errors="replace"), digest_size=12).hexdigest()
        return f"{self._name}/{state.current_player_id}/{digest}"
