"""A judge as the reward of a run: its mean score of a finished episode, in [0, 1], which the last turn gets.

A policy that is trained on a judge learns what the judge likes, mistakes included; docs/judges.md says how that goes
wrong. A judgement that fails is an error, so its episode is a failure without a reward, not one with the reward 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from milepost.envs.types import Trajectory, Turn
from milepost.reward.judges.config import load_config
from milepost.reward.judges.judge import Judge
from milepost.reward.judges.quoting import Transcript, TranscriptTurn
from milepost.reward.reward import TurnText


class JudgementFailed(Exception):
    """There is no score of an episode."""


class JudgeReward:
    """Name an instance in `[reward] path`. Before a run its judge is verified; in a worker it only asks."""

    def __init__(self, file: str | Path) -> None:
        """The judge of a TOML file. Raises JudgeRefused."""
        self.judge = Judge(load_config(Path(file)))

    async def __call__(self, trajectory: Trajectory, texts: Sequence[TurnText]) -> float:
        """Mean over the criteria. Raises JudgementFailed and JudgeRefused."""
        turns = tuple(_turn(turn, text) for turn, text in zip(trajectory.turns, texts, strict=True))
        found = await self.judge.judge(Transcript(task=texts[0].observation, outcome=trajectory.outcome, turns=turns))
        if found.failure:
            raise JudgementFailed(f"judge {self.judge.config.name}: {found.failure}")
        return math.fsum(found.scores.values()) / len(found.scores)


def _turn(turn: Turn, text: TurnText) -> TranscriptTurn:
    broken = (turn.tool or {}).get("violations", ())
    return TranscriptTurn(
        agent=text.response, environment=text.next_observation, broken_rules=tuple(str(rule) for rule in broken)
    )
