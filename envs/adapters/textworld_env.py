"""Text adventures that TextWorld makes from a seed: rooms, things, and a quest to fulfil by commands.

A game is generated and compiled by the package's own Inform 7, which takes seconds, and kept in `.cache/textworld`, so
that the episodes of a task share it. The policy reads what the game prints, and which commands there are; others do not
reach the game, for it would take `save` too. Not promised: eviction of kept games, 0.4 MB each; or that a quest needs
all rooms.
"""

from __future__ import annotations

import fcntl
import hashlib
import random
import string
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from milepost.envs.adapters.foreign import foreign
from milepost.envs.answer import read_answer, write_answer

INSTALL = "pip install 'milepost[textworld]'"
_GAMES = Path(".cache/textworld")
_PACKAGE = threading.Lock()
"""Held where the package makes or plays a game: its parsers are one object, which two threads break."""
_SPACE = Text(min_length=0, max_length=100_000, charset=string.printable)


class TextWorldGame(gymnasium.Env):  # type: ignore[misc]  # gymnasium is untyped for mypy here
    """A game of `rooms` rooms with `objects` things, and a quest that takes `quest_length` commands.

    The reward is 1 for the command that fulfils the quest; progress is the share of its commands that are done. The
    anchor is the set of facts that hold in the world. Raises ImportError without the package.
    """

    def __init__(self, *, rooms: int = 3, objects: int = 4, quest_length: int = 3, max_steps: int = 20) -> None:
        self.observation_space = self.action_space = _SPACE
        self._textworld = foreign("textworld", INSTALL)
        self._shape = {"nb_rooms": rooms, "nb_objects": objects, "quest_length": quest_length}
        self._max_steps = max_steps
        self._running: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """The start of the game that `seed` makes."""
        super().reset(seed=seed, options=options)
        self.close()
        game = _made(self._textworld, self._shape, int(self.np_random.integers(2**31)))
        asked = ("objective", "description", "facts", "admissible_commands", "policy_commands")
        infos = self._textworld.EnvInfos(**dict.fromkeys(asked, True))
        with _PACKAGE:
            self._running = self._textworld.start(str(game), request_infos=infos)
            self._running.seed(0)  # of the interpreter: what the package generates draws nothing
            self._state, self._steps = self._running.reset(), 0
        self._quest = max(1, len(self._state["policy_commands"]))
        info = {"anchor": self._anchor(), "admissible_actions": list(self._state["admissible_commands"])}
        return self._told(f"{self._state['objective']}\n\n{self._state['description']}"), info

    def step(self, response: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Give the game the command that `response` answers; a turn passes in any case."""
        self._steps += 1
        commands = {command.lower(): command for command in self._state["admissible_commands"]}
        answer = read_answer(response, list(commands))
        said = "There is no such command here."
        if answer is not None:
            with _PACKAGE:
                self._state = self._running.step(commands[answer])[0]
            said = str(self._state["feedback"]).split("\n>")[0].strip()
        won, lost = bool(self._state["won"]), bool(self._state["lost"])
        info: dict[str, Any] = {"anchor": self._anchor(), "action_valid": answer is not None, "success": won}
        info["admissible_actions"] = list(self._state["admissible_commands"])
        if answer is not None:
            info["action"] = answer
        left = self._state["policy_commands"]
        if won or left:  # without either, the quest cannot be fulfilled any more
            info["progress"] = max(0.0, 1 - len(left) / self._quest)
        ended = won or lost
        return (
            said if ended else self._told(said),
            float(won),
            ended,
            not ended and self._steps >= self._max_steps,
            info,
        )

    def close(self) -> None:
        """End the interpreter."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def demonstration(self, rng: random.Random, noise: float) -> str:
        """The next command of the package's own solution; with probability `noise` any command."""
        commands = self._state["admissible_commands"]
        return write_answer(rng.choice(commands) if rng.random() < noise else self._state["policy_commands"][0])

    def _told(self, text: str) -> str:
        commands = ", ".join(self._state["admissible_commands"])
        return f"{text}\n\nAnswer with one command, like <answer>look</answer>. You can: {commands}"

    def _anchor(self) -> str:
        facts = "\n".join(sorted(map(str, self._state["facts"])))
        return hashlib.blake2b(facts.encode(), digest_size=12).hexdigest()


def _made(textworld: Any, shape: Mapping[str, int], seed: int) -> Path:
    """The compiled game of this shape and seed, made if it is not there; one is made at a time, by all processes."""
    folder = _GAMES / "-".join(map(str, [textworld.__version__, *shape.values(), seed]))
    _GAMES.mkdir(parents=True, exist_ok=True)
    with (_GAMES / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=_GAMES) as beside:
                options = textworld.GameOptions()
                for name, value in shape.items():
                    setattr(options, name, value)
                options.seeds, options.path = seed, f"{beside}/made/game.z8"
                with _PACKAGE:
                    textworld.make(options)
                Path(beside, "made").rename(folder)
    return folder / "game.z8"
