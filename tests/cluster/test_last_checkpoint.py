"""What is saved before a failure ends the run, on a learner that answers as it is told."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from milepost.cluster.base.exits import ConfigError, DependencyLost, Diverged
from milepost.cluster.recovery import Progress, Recovery
from milepost.cluster.replay.ready import Taken
from milepost.cluster.runlog import runs
from milepost.cluster.settings.config import RunConfig, RunSection
from milepost.learner.recipe import UpdateOptions

OUTAGE = ConfigError("500 episodes in a row failed within 240 s")


class Parts:
    """The parts of a run at version 7, of which version 5 is saved. An update takes until `step` is set."""

    def __init__(self, folder: Path) -> None:
        self.saved: list[int] = []
        self.step, self.disk = asyncio.Event(), asyncio.Event()
        self.disk.set()
        self.broken: Exception | None = None
        config = RunConfig(run=RunSection(stop_grace_s=0.3, checkpoint_every=100))
        self.progress = Progress(runs.create(folder, "last"), iteration=7, version=7, saved=5)
        nothing = SimpleNamespace(settle=self.nothing, commit=self.nothing, remember=self.nothing)
        system: Any = SimpleNamespace(config=config, folder=self, learners=self, buffer=nothing)
        reporter: Any = SimpleNamespace(activity=lambda _: None, note=lambda _: None, saved=lambda: None)
        histories: Any = nothing
        self.recovery = Recovery(system, reporter, self.progress, histories)

    async def nothing(self, *_: object) -> None:
        pass

    async def train(self, *_: object) -> Any:
        await self.step.wait()
        if self.broken:
            raise self.broken

    async def save(self, *, version: int, **_: object) -> Path:
        await self.disk.wait()
        self.saved.append(version)
        return Path()

    def keep_policy(self, *_: object) -> None:
        pass

    async def update(self) -> None:
        await self.recovery.train(Taken([], [], []), UpdateOptions(), [])
        await self.recovery.consume(Taken(groups=[], stale=[], undecodable=[]), [])
        await asyncio.sleep(60)  # the next wait for groups


async def ended(parts: Parts, end: Exception, *, step: bool = True, broken: Exception | None = None) -> list[int]:
    """What is saved where `end` ends a run in whose update it came."""
    training = asyncio.create_task(parts.update())
    await asyncio.sleep(0)
    saving = asyncio.create_task(parts.recovery.save_before(end, training))
    await asyncio.sleep(0.01)
    parts.broken = broken
    if step:
        parts.step.set()
    async with asyncio.timeout(5):
        await saving
        training.cancel()
        await asyncio.wait({training})
    return parts.saved


def test_a_run_that_gives_up_between_two_updates_saves_the_last_one_first(tmp_path: Path) -> None:
    async def give_up() -> None:
        parts = Parts(tmp_path)
        waiting = asyncio.create_task(asyncio.sleep(60))
        await parts.recovery.save_before(OUTAGE, waiting)  # type: ignore[arg-type]
        assert parts.saved == [7]
        assert waiting.cancelled()
        assert "of version 7" in parts.progress.way_on

    asyncio.run(give_up())


def test_an_update_under_way_is_finished_and_saved(tmp_path: Path) -> None:
    async def give_up() -> None:
        assert await ended(Parts(tmp_path), OUTAGE) == [8]

    asyncio.run(give_up())


@pytest.mark.parametrize("end", [OUTAGE, DependencyLost("the learner")])
def test_an_update_that_breaks_off_or_takes_too_long_is_not_saved_halfway(tmp_path: Path, end: Exception) -> None:
    async def give_up() -> None:
        assert await ended(Parts(tmp_path / "broken"), end, broken=DependencyLost("a rank died")) == []
        assert await ended(Parts(tmp_path / "slow"), end, step=False) == []

    asyncio.run(give_up())


def test_a_policy_that_diverged_is_not_saved(tmp_path: Path) -> None:
    async def give_up() -> None:
        parts = Parts(tmp_path)
        training = asyncio.create_task(parts.nothing())
        await parts.recovery.save_before(Diverged("parity"), training)
        assert parts.saved == []

    asyncio.run(give_up())


def test_before_the_first_update_there_is_nothing_to_save(tmp_path: Path) -> None:
    async def give_up() -> None:
        parts = Parts(tmp_path)
        parts.progress.version, parts.progress.saved = 0, None
        await parts.recovery.save_before(OUTAGE, asyncio.create_task(parts.nothing()))
        assert parts.saved == []

    asyncio.run(give_up())


def test_a_disk_that_does_not_answer_holds_the_end_up_for_the_grace_only(tmp_path: Path) -> None:
    async def give_up() -> None:
        parts = Parts(tmp_path)
        parts.disk.clear()
        assert await ended(parts, OUTAGE) == []

    asyncio.run(give_up())
