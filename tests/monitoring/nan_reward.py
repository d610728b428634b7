"""A reward that breaks for every other episode while a file says so."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from milepost.envs.types import Trajectory
from milepost.reward.reward import TurnText

SWITCH = "MILEPOST_TEST_NAN_REWARD"
"""Environment variable that names the file."""


def reward(trajectory: Trajectory, _: Sequence[TurnText]) -> float:
    """The environment's return, or NaN."""
    broken = Path(os.environ[SWITCH]).exists() and trajectory.index % 2 == 0
    return math.nan if broken else trajectory.reward
