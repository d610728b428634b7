"""What the benchmarks of whole runs train on: FrozenLake in text, with a short prompt and with a long one.

An update takes 8 groups of 8 episodes of at most 8 turns, with a Llama of 3.3 M parameters in float32 that a warm-up
taught the answer format. The long prompt is a handbook of about 2,000 tokens before the same game: what every episode
of every group shares, as instructions and tool descriptions are shared in practice.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any, Final

from gymnasium.spaces import Text

from milepost.envs.frozen_lake import FrozenLakeText

GROUPS: Final = 8
GROUP_SIZE: Final = 8
TURNS: Final = 8
_WORDS: Final = (
    "ice", "hole", "goal", "walk", "player", "answer", "wall", "north", "south", "careful", "crack", "snow", "depth",
    "shore", "light", "wind", "step", "map", "grid", "cell", "row", "column", "edge", "frozen", "thin", "thick", "safe",
)  # fmt: skip


class HandbookLake(FrozenLakeText):
    """FrozenLake behind a handbook of `words` words, the same in every episode; a step takes `delay_s` seconds."""

    def __init__(self, *, words: int = 0, delay_s: float = 0.0, max_steps: int = TURNS) -> None:
        super().__init__(max_steps=max_steps)
        draw = random.Random(0)
        self._handbook = " ".join(draw.choice(_WORDS) for _ in range(words))
        self._delay_s = delay_s
        self.observation_space = Text(max_length=20_000, charset=self.observation_space.character_set)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """As FrozenLakeText."""
        said, info = super().reset(seed=seed, options=options)
        return f"{self._handbook}\n{said}" if self._handbook else said, info

    def step(self, response: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """As FrozenLakeText, after the delay."""
        time.sleep(self._delay_s)
        return super().step(response)


@dataclass(frozen=True, slots=True)
class Workload:
    """A game and the policy that plays it."""

    name: str
    words: int
    """Of the handbook."""
    demonstrations: int
    """Episodes that the policy imitates."""
    max_model_len: int

    def config(self, *, delay_s: float = 0.0) -> dict[str, Any]:
        """The sections of a run's configuration that all runs of this workload share."""
        return {
            "run": {
                "name": "bench",
                "groups_per_iteration": GROUPS,
                "group_size": GROUP_SIZE,
                "eval_episodes": 0,
                "checkpoint_every": 1000,
            },
            "model": {
                "source": "warmup",
                "warmup": {
                    "hidden_size": 256,
                    "intermediate_size": 688,
                    "max_positions": 4096,
                    "episodes": self.demonstrations,
                },
            },
            "env": {
                "path": "tests.benchmarks.workloads:HandbookLake",
                "options": {"words": self.words, "delay_s": delay_s},
                "train_size": 512,
                "heldout_size": 0,
            },
            "engine": {"max_model_len": self.max_model_len, "max_num_seqs": 128, "num_threads": 1},
            "sampling": {"max_tokens": 16},
            "actors": {"concurrent_groups": GROUPS, "env_threads": GROUPS * GROUP_SIZE, "max_turns": TURNS},
            "filter": {"method": "none"},
            "learner": {"lr": 1e-6, "threads": 1},
        }


WORKLOADS: Final = {
    one.name: one
    for one in (
        Workload("short", words=0, demonstrations=1500, max_model_len=1024),
        Workload("long-prompt", words=1900, demonstrations=150, max_model_len=4096),
    )
}
