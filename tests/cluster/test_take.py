"""Waiting for groups on a real Redis: slow is not stalled."""

import asyncio
from pathlib import Path
from unittest.mock import AsyncMock, Mock

import pytest

from milepost.cluster import take
from milepost.cluster.base.exits import WatchdogExpired
from milepost.cluster.runlog import runs
from milepost.cluster.settings import config as configs
from milepost.cluster.system import System
from milepost.cluster.take import take_groups
from milepost.envs.scenarios import ScenarioConfig, ScenarioSet
from tests.cluster.replay.buffer_rig import Rig, ids, rig, trajectory

_STALL_S = 0.6


def system_on(run: Rig, folder: Path, groups: int) -> System:
    config = configs.RunConfig(
        run=configs.RunSection(groups_per_iteration=groups, group_size=2, stall_timeout_s=_STALL_S),
        env=ScenarioConfig(train_size=4, heldout_size=2),
    )
    system = System(config, runs.create(folder, "waiting"), ScenarioSet(config.env))
    system.ledger, system.buffer = run.ledger, run.buffer
    system.engines = Mock(is_replacing=False)
    return system


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(take, "_SLICE_S", 0.1)


def test_groups_that_come_slowly_are_waited_for_longer_than_the_stall_timeout(tmp_path: Path, redis_url: str) -> None:
    said: list[str] = []

    async def slow() -> None:
        async with rig(redis_url) as run:
            waiting = asyncio.create_task(
                take_groups(system_on(run, tmp_path, 6), Mock(make_room=AsyncMock()), 0, asyncio.Event(), said.append)
            )
            for name in "abcdef":
                await asyncio.sleep(_STALL_S / 2)
                await run.fill(name)
            taken = await waiting
            assert taken is not None
            assert ids(taken) == list("abcdef")

    asyncio.run(slow())
    assert said[0] == "waiting for groups: 0 of 6"
    assert any(text.startswith("waiting for groups: 5 of 6, one every 0.") for text in said), said


def test_episodes_that_end_are_progress_before_a_group_is_ready(tmp_path: Path, redis_url: str) -> None:
    async def slow() -> None:
        async with rig(redis_url) as run:
            system = system_on(run, tmp_path, 1)
            waiting = asyncio.create_task(
                take_groups(system, Mock(make_room=AsyncMock()), 0, asyncio.Event(), lambda _: None)
            )
            await run.issue("long", size=5)
            for index in range(5):
                await asyncio.sleep(_STALL_S / 2)
                await run.buffer.put(trajectory("long", index))
            taken = await waiting
            assert taken is not None
            assert ids(taken) == ["long"]

    asyncio.run(slow())


def test_a_wait_for_an_engine_that_is_being_replaced_is_no_stall_until_it_serves(
    tmp_path: Path, redis_url: str
) -> None:
    async def replaced() -> None:
        async with rig(redis_url) as run:
            system = system_on(run, tmp_path, 1)
            system.engines.is_replacing = True
            waiting = asyncio.create_task(
                take_groups(system, Mock(make_room=AsyncMock()), 0, asyncio.Event(), lambda _: None)
            )
            await asyncio.sleep(3 * _STALL_S)
            assert not waiting.done()
            system.engines.is_replacing = False
            with pytest.raises(WatchdogExpired, match="no episode finished"):
                await waiting

    asyncio.run(replaced())


def test_a_wait_in_which_nothing_ends_is_a_stall_and_names_who_is_missing(tmp_path: Path, redis_url: str) -> None:
    async def stalled() -> None:
        async with rig(redis_url) as run:
            await run.fill("a")
            await run.issue("hanging")
            with pytest.raises(WatchdogExpired, match=r"no episode finished for run.stall_timeout_s = 0.6: .*hanging"):
                await take_groups(
                    system_on(run, tmp_path, 2), Mock(make_room=AsyncMock()), 0, asyncio.Event(), lambda _: None
                )

    asyncio.run(stalled())


def test_what_is_dropped_and_played_again_is_no_progress(tmp_path: Path, redis_url: str) -> None:
    """Groups that are too old for the learner come for ever, and none is ever taken."""

    async def endless() -> None:
        async with rig(redis_url) as run:
            await run.ledger.set_versions(version=5)
            waiting = asyncio.create_task(
                take_groups(
                    system_on(run, tmp_path, 2), Mock(make_room=AsyncMock()), 5, asyncio.Event(), lambda _: None
                )
            )
            number = 0
            while not waiting.done():
                await run.fill(f"old-{number}")  # version 0, the bound is 1
                number += 1
                await asyncio.sleep(0.05)
            with pytest.raises(WatchdogExpired, match="no episode finished"):
                await waiting

    asyncio.run(endless())
