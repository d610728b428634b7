"""Recorded episodes whose spans can be worked out by hand."""

from __future__ import annotations

from typing import Any

from milepost.cluster.trajectories.recording import RecordedTurn, Recording
from milepost.cluster.trajectories.table import Judged
from milepost.envs.types import Task, VersionSpan
from milepost.learner.episode_credit import EpisodeCredit

BEGAN = 1_700_000_000.0
"""Unix time; halves and quarters of a second behind it are exact."""
TEXTS = [("Find 3.", "2"), ("higher", "3"), ("", "")]
CREDIT = EpisodeCredit(
    trajectory=0.5, turns=[0.25, 0.75], steps=[-0.25, 0.25], compared=[True, True], advantages=[0.125, 0.375],
    token_advantages=None,
)  # fmt: skip
TRAINED = Judged(fate="trained", reason="selected", learner_version=5, strategy="crbc", credit=CREDIT)


def turn(**changes: Any) -> RecordedTurn:
    values: dict[str, Any] = {
        "prompt_ids": [1, 2, 3],
        "continues": False,
        "response_ids": [4, 5],
        "logprobs": [-0.5, -0.5],
        "versions": [VersionSpan(version=3, start=0, end=2)],
        "anchor": "1..7",
        "next_anchor": "3..7",
        "action": "2",
        "reward": 0.0,
        "stopped": True,
        "started_s": 0.5,
        "generate_s": 1.0,
        "env_s": 0.25,
    }
    return RecordedTurn(**values | changes)


def recording(*turns: RecordedTurn, **changes: Any) -> Recording:
    """Two turns by default: 3 tokens are answered with 2, then 1 more (3 + 2 + 1) with 1; the second pays 1."""
    second = turn(
        prompt_ids=[6],
        continues=True,
        response_ids=[7],
        logprobs=[-0.5],
        versions=[VersionSpan(version=4, start=0, end=1)],
        anchor="3..7",
        next_anchor="3..3",
        action="3",
        reward=1.0,
        stopped=False,
        started_s=2.0,
        generate_s=0.5,
    )
    values: dict[str, Any] = {
        "task": Task(env="higher_lower:HigherLower", seed=7, split="train"),
        "group_id": "g00000012",
        "index": 3,
        "turns": list(turns or (turn(), second)),
        "outcome": "success",
        "started_at": BEGAN,
        "seconds": 3.0,
    }
    return Recording(**values | changes)
