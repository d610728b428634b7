"""A reward that reads what the coin game said."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from milepost.envs.types import Trajectory
from milepost.reward.reward import TurnText


async def hits(_: Trajectory, texts: Sequence[TurnText]) -> float:
    """How many calls were right."""
    await asyncio.sleep(0.01)
    return float(sum(text.next_observation == "Right." for text in texts))
