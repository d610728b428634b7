"""Tasks of reasoning-gym, as episodes of one turn that the package's own scorer judges.

The answer stands between `<answer>` and `</answer>`, as the package's prompt asks for it and as its own reader finds
it: the last pair counts. Not promised: that a dataset has no two equal tasks, or that its scorer is strict.
"""

from __future__ import annotations

import random
import string
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from milepost.envs.adapters.foreign import foreign
from milepost.envs.answer import write_answer

INSTALL = "pip install 'milepost[reasoning-gym]'"
_SPACE = Text(min_length=0, max_length=100_000, charset=string.printable)


class ReasoningGym(gymnasium.Env):  # type: ignore[misc]  # gymnasium is untyped for mypy here
    """One question of the dataset `dataset`, made with `config`, which is the package's own configuration of it.

    The reward is the dataset's score of the answer, in [0, 1]; success is a score of 1. The cohort is the dataset.
    Raises ImportError without the package, and ValueError or TypeError for a dataset or a configuration that it does
    not know.
    """

    def __init__(self, *, dataset: str = "chain_sum", config: dict[str, Any] | None = None) -> None:
        self.observation_space = self.action_space = _SPACE
        self._create = foreign("reasoning_gym", INSTALL).create_dataset
        language = foreign("reasoning_gym.utils", INSTALL)
        self._read, self._prompt = language.extract_answer, language.SYSTEM_PROMPTS["default"]
        self._name, self._config = dataset, config or {}
        self._tasks = self._made(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """The question that `seed` makes."""
        super().reset(seed=seed, options=options)
        self._tasks = self._made(int(self.np_random.integers(2**31)))
        self._task = self._tasks[0]
        self._anchor = str(self._task["question"])
        return f"{self._prompt}\n{self._anchor}", {"anchor": self._anchor, "cohort": self._name}

    def step(self, response: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Score the answer; the episode ends."""
        answer = self._read(response)
        score, complaint = self._score(answer)
        info: dict[str, Any] = {"anchor": self._anchor, "action_valid": answer is not None, "success": score >= 1.0}
        if answer is not None:
            info |= {"action": answer, "anchor": "answered"}
        return f"Score {score:g}{complaint}.", score, True, False, info

    def demonstration(self, rng: random.Random, noise: float) -> str:
        """The dataset's own answer; with probability `noise` the one to another question."""
        return write_answer(str(self._tasks[1 if rng.random() < noise else 0]["answer"]))

    def _made(self, seed: int) -> Any:
        return self._create(self._name, **self._config | {"seed": seed, "size": 2})

    def _score(self, answer: str | None) -> tuple[float, str]:
        """The package's score, and what to add where its scorer breaks at an answer: that is worth nothing."""
        if answer is None:
            return 0.0, ", no <answer>"
        try:
            return float(self._tasks.score_answer(answer=answer, entry=self._task)), ""
        except Exception as error:  # scorers parse answers, and what a policy writes must not fail the episode
            return 0.0, f", {type(error).__name__} in the scorer"
