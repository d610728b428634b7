"""What is measured of a policy between two updates, by parts that answer as they are told."""

import asyncio
import contextlib
import threading
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from milepost.cluster import policy_checks
from milepost.cluster.policy_checks import check_policy
from milepost.cluster.replay.ready import LeasedGroup
from milepost.cluster.settings.config import RunConfig
from milepost.envs.types import Group
from milepost.learner.health.repetition import repetition
from tests.cluster.replay.buffer_rig import encoded, task, trajectory


def leased(name: str, said: list[list[int]]) -> LeasedGroup:
    """Two episodes of one turn, each of which says one of `said`."""
    episodes = []
    for index, ids in enumerate(said):
        played = trajectory(name, index, tokens=len(ids))
        episodes.append(
            msgspec.structs.replace(played, turns=[msgspec.structs.replace(played.turns[0], response_ids=ids)])
        )
    group = Group(group_id=name, task=task(), trajectories=episodes)
    return LeasedGroup("1-0", group, encoded(group), 0, 0)


def test_repetition_is_measured_over_the_groups_of_the_update_and_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring: list[threading.Thread] = []

    def measured(responses: Any) -> float:
        measuring.append(threading.current_thread())
        return repetition(responses)

    async def check() -> float | None:
        async def sampled(_prompts: list[list[int]]) -> list[Any]:
            return []

        system: Any = SimpleNamespace(config=RunConfig(), engines=SimpleNamespace(sample=sampled))
        progress: Any = SimpleNamespace(iteration=1, version=1)
        groups = [leased("a", [[1, 2, 3, 4], [5, 6, 7, 8]]), leased("b", [[1, 2, 3, 4], [9, 9, 9, 9]])]
        found = await check_policy(system, groups, progress, lambda _: contextlib.nullcontext())
        assert threading.current_thread() not in measuring
        return found.repetition

    monkeypatch.setattr(policy_checks, "repetition", measured)
    assert asyncio.run(check()) == 2 / 4, "one of each group's two answers is the other group's, too"
