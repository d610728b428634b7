"""A stop loses the step under way at most: what it waits for, and what is saved before it comes."""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from milepost.cluster.base.exits import Stopped
from milepost.cluster.histories import GroupHistories
from milepost.cluster.recovery import Progress, Recovery
from milepost.cluster.run import Run
from milepost.cluster.runlog import runs
from milepost.cluster.runlog.console import LiveView
from milepost.cluster.runlog.metrics import Metrics
from milepost.cluster.settings import config as configs
from milepost.cluster.start import Start
from milepost.cluster.system import System
from milepost.envs.scenarios import ScenarioConfig, ScenarioSet
from tests.cluster.replay.buffer_rig import rig

_GRACE_S = 0.4
_STEP_S = 1.0


def config(**run: object) -> configs.RunConfig:
    return configs.RunConfig(
        env=ScenarioConfig(train_size=4, heldout_size=2),
        run=configs.RunSection(stop_grace_s=_GRACE_S, checkpoint_every=100, **run),
    )


@pytest.mark.parametrize(("saved", "is_awaited"), [(1, True), (18, False)])
def test_a_stop_waits_for_a_long_step_where_more_than_it_would_be_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], saved: int, *, is_awaited: bool
) -> None:
    folder = runs.create(tmp_path, "stopped")
    with Metrics(folder.metrics) as metrics, LiveView(run_id=folder.run_id, iterations=40) as view:
        run = Run(config(), folder, view, metrics)

        async def step(_: Start) -> None:
            run.progress.version, run.progress.saved, run._in_step = 18, saved, True
            run.stop()
            await asyncio.sleep(_STEP_S)
            run.progress.version = run.progress.saved = 19

        run._work = step
        began = time.monotonic()
        if is_awaited:
            asyncio.run(run.main(Start(folder.start, None, None)))
            assert run.progress.saved == 19
            assert time.monotonic() - began >= _STEP_S
        else:
            with pytest.raises(Stopped, match="the newest checkpoint is of version 18"):
                asyncio.run(run.main(Start(folder.start, None, None)))
    assert ("waiting for a long step, with 17 unsaved before it" in capsys.readouterr().out) is is_awaited


@pytest.mark.parametrize(("step_s", "is_saved"), [(0.3, True), (0.0, False)])
def test_steps_longer_than_a_stop_waits_are_saved_one_by_one(
    tmp_path: Path, redis_url: str, step_s: float, *, is_saved: bool
) -> None:
    async def update() -> None:
        async with rig(redis_url) as run:
            system = System(config(), runs.create(tmp_path, "long"), ScenarioSet(ScenarioConfig(train_size=4)))
            system.ledger, system.buffer = run.ledger, run.buffer

            async def train(*_: object) -> None:
                await asyncio.sleep(step_s)

            async def save(**_: object) -> Path:
                (tmp_path / "saved" / "policy").mkdir(parents=True)
                return tmp_path / "saved"

            system.learners = SimpleNamespace(train=train, save=save)
            progress = Progress(system.folder)
            recovery = Recovery(system, Mock(), progress, GroupHistories(None))
            await run.fill("a")
            taken = await run.take(1)
            await recovery.train(taken, Mock(), [])
            await recovery.consume(taken, [Mock(keep=True)])
            assert (progress.version, progress.saved, progress.unsaved) == (
                1,
                1 if is_saved else None,
                int(not is_saved),
            )
            assert await run.counts() == ({"trained": 2} if is_saved else {"applied": 2})

    asyncio.run(update())
