"""Ledger and checkpoint brought together again, on a real Redis."""

import asyncio
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import AsyncMock, Mock

import pytest

from milepost.cluster.histories import GroupHistories
from milepost.cluster.recovery import Progress, Recovery
from milepost.cluster.replay import redis_server
from milepost.cluster.runlog import runs
from milepost.cluster.settings import config as configs
from milepost.cluster.start import Start
from milepost.cluster.system import System
from milepost.envs.scenarios import ScenarioConfig, ScenarioSet
from milepost.learner.zero import checkpoint
from tests.cluster.replay.buffer_rig import Rig, ids, rig, trajectory


def start_from(folder: Path, version: int, consumed: dict[str, str]) -> Start:
    facts = checkpoint.Record(
        run_id="r", iteration=version, policy_version=version, config_hash="", versions={}, consumed=consumed
    )
    manifest = checkpoint.Manifest(schema=1, record=facts, files={}, digest="")
    return Start(folder, None, checkpoint.Found(folder, manifest, ()))


async def begin(run: Rig, folder: Path, start: Start) -> list[str]:
    """Begin as a driver does; what it noted."""
    config = configs.RunConfig(env=ScenarioConfig(train_size=4, heldout_size=2))
    system = System(config, runs.create(folder, "resumed"), ScenarioSet(config.env))
    system.ledger, system.buffer = run.ledger, run.buffer
    system.learners = SimpleNamespace(load=AsyncMock())
    reporter = Mock()
    progress = Progress(system.folder, iteration=start.iteration, version=start.version)
    await Recovery(system, reporter, progress, GroupHistories(None)).begin(start)
    return [call.args[0] for call in reporter.note.call_args_list]


@pytest.mark.parametrize("consumed", [{"d": "trained"}, {}])
def test_a_redis_restored_from_a_copy_follows_the_checkpoint_and_trains_nothing_twice(
    tmp_path: Path, consumed: dict[str, str]
) -> None:
    live, copy = tmp_path / "live", tmp_path / "copy"

    async def train(url: str, versions: dict[int, str]) -> None:
        async with rig(url, run_id="r") as run:
            for version, name in versions.items():
                if not version:
                    await run.fill(name)
                    continue
                assert ids(await run.take(1, version=version)) == [name]
                await run.buffer.commit(version, {name: "trained"})
                await run.buffer.settle(version - 1)

    async def prepare(url: str) -> None:
        async with rig(url, run_id="r") as run:
            for name in "abcde":
                await run.fill(name)
            await run.issue("open")
            await run.buffer.put(trajectory("open", 0))
        await train(url, {1: "a"})

    async def resume(url: str) -> None:
        async with rig(url, run_id="r") as run:
            assert await run.ledger.version() == 1
            notes = await begin(run, tmp_path, start_from(tmp_path, 4, consumed))
            assert len(notes) == 1
            assert notes[0].startswith("Redis is at version 1 and the checkpoint at 4")
            assert "5 groups that Redis still held are dropped" in notes[0]
            assert await run.ledger.version() == 4
            assert await run.counts() == {"trained": 2, "stale": 10}  # b to e and the open group, two episodes each
            await run.fill("new", oldest=4)
            assert ids(await run.take(1, version=4)) == ["new"]
            await run.buffer.commit(5, {"new": "trained"})
            assert await run.buffer.settle(5) == 1

    with redis_server.start(live) as server:
        asyncio.run(prepare(server.url))
    shutil.copytree(live, copy)
    with redis_server.start(live) as server:
        asyncio.run(train(server.url, {2: "b", 3: "c", 4: "d"}))
    with redis_server.start(copy) as server:
        asyncio.run(resume(server.url))


def test_a_crash_between_checkpoint_and_commit_drops_nothing(tmp_path: Path, redis_url: str) -> None:
    async def resume() -> None:
        async with rig(redis_url) as run:
            await run.fill("a")
            await run.fill("b")
            assert await begin(run, tmp_path, start_from(tmp_path, 1, {"a": "trained"})) == []
            assert await run.counts() == {"trained": 2, "finished": 2}
            assert ids(await run.take(1, version=1)) == ["b"]

    asyncio.run(resume())


def test_a_group_of_the_checkpoint_that_redis_lacks_does_not_keep_a_run_from_going_on(
    tmp_path: Path, redis_url: str
) -> None:
    async def resume() -> None:
        async with rig(redis_url) as run:
            await run.fill("b")
            notes = await begin(run, tmp_path, start_from(tmp_path, 1, {"a": "trained"}))
            assert "Redis is at version 0 and the checkpoint at 1" in notes[0]
            assert await run.counts() == {"stale": 2}
            assert await run.ledger.version() == 1

    asyncio.run(resume())
