"""What is only measured, recorded or shown ends no run: it is said once, and training goes on."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from milepost.cluster.base.exits import DependencyLost
from milepost.cluster.histories import GroupHistories
from milepost.cluster.replay.history import TaskHistory
from milepost.cluster.replay.ready import LeasedGroup, Taken
from milepost.cluster.reporter import Reporter
from milepost.cluster.runlog import runs
from milepost.cluster.runlog.iteration_record import Clock, PolicyChecks
from milepost.cluster.runlog.metrics import Metrics
from milepost.cluster.settings.config import RunConfig
from milepost.cluster.watch import Watch
from milepost.envs.types import Group
from milepost.learner.credit.filter import Verdict
from milepost.learner.loop import UpdateReport
from milepost.learner.update_metrics import measured
from tests.cluster.replay.buffer_rig import Rig, encoded, failure, rig, task, trajectory
from tests.cluster.runlog.test_metrics import scrape

KEPT = (Verdict(keep=True, reason="unfiltered", score=1.0, weight=1.0),)


class View:
    """Remembers what people were told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, line: object) -> None:
        pass


def group(name: str) -> Group:
    return Group(group_id=name, task=task(), trajectories=[trajectory(name, index) for index in range(2)])


def raising(*_: object, **__: object) -> Any:
    raise OverflowError("int too large to convert to float")


async def two_iterations(
    run: Rig, folder: Path, metrics: Metrics, view: View, spoil: Callable[[Reporter], object]
) -> None:
    config = RunConfig()
    system: Any = SimpleNamespace(config=config, folder=runs.create(folder, "meters"), ledger=run.ledger)
    system.buffer, system.metrics_ports = run.buffer, {}
    system.engines = system.workers = system.learners = SimpleNamespace(restarts=0)
    shown: Any = view
    reporter = Reporter(system, shown, metrics, Watch(config, []))
    spoil(reporter)
    for iteration in (1, 2):
        report = UpdateReport(
            version=0, skipped_steps=0, losses=(0.5,), verdicts=KEPT, credits=(), tokens=8, num_samples=5,
            prefix_breaks=1, padding_share=0.25, parity=None, metrics={}, seconds={},
        )  # fmt: skip
        taken = Taken([LeasedGroup("1-0", group("g"), encoded(group("g")), 0, 0)], stale=[group("old")], undecodable=[])
        clock = Clock(dict.fromkeys(("wait", "train", "commit", "publish", "check"), 1.0))
        await reporter.iteration(
            taken, report, clock, iteration, PolicyChecks(parity=None, information=None, repetition=None)
        )


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda reporter: setattr(reporter._watch, "lost", raising), "the meter of selection bias failed"),
        (lambda reporter: setattr(reporter._watch, "iteration", raising), "the record of an iteration failed"),
        (lambda reporter: setattr(reporter._metrics, "record", raising), "the record of an iteration failed"),
        (lambda reporter: setattr(reporter, "_folder", Path("/nowhere")), "the status file failed"),
    ],
)
def test_a_meter_that_breaks_is_said_once_and_the_iterations_go_on(
    redis_url: str, tmp_path: Path, spoil: Callable[[Reporter], object], said: str
) -> None:
    async def check() -> None:
        view = View()
        with Metrics(tmp_path / "metrics.jsonl") as metrics:
            async with rig(redis_url) as run:
                await two_iterations(run, tmp_path, metrics, view, spoil)
        assert len(view.notes) == 1
        assert view.notes[0].startswith(said)
        assert view.notes[0].endswith("training goes on without it, the log has the details")

    asyncio.run(check())


def test_prometheus_sees_the_parts_of_a_run_also_while_no_iteration_ends(redis_url: str, tmp_path: Path) -> None:
    async def check() -> dict[str, float]:
        with Metrics(tmp_path / "metrics.jsonl") as metrics:
            async with rig(redis_url) as run:
                await run.fill("ready")
                parts: Any = SimpleNamespace(config=RunConfig(), folder=None, buffer=run.buffer, ledger=run.ledger)
                parts.engines = SimpleNamespace(served={0: 3, 1: None}, restarts=1)
                parts.workers = SimpleNamespace(running=2, restarts=0)
                parts.learners = SimpleNamespace(restarts=0)
                view: Any = View()
                reporter = Reporter(parts, view, metrics, Watch(RunConfig(), []))
                watching = asyncio.create_task(reporter.watch_system(lambda: 4))
                while (seen := scrape(metrics))["milepost_workers_up"] == 0:
                    await asyncio.sleep(0.05)
                watching.cancel()
                return seen

    seen = asyncio.run(check())
    assert (seen["milepost_buffer_groups"], seen["milepost_unsaved_updates"]) == (1, 4)
    assert seen["milepost_ledger_issued_episodes"] > seen["milepost_ledger_imbalance_episodes"] == 0
    assert (seen['milepost_engine_up{engine="0"}'], seen['milepost_engine_up{engine="1"}']) == (1, 0)
    assert seen['milepost_restarts_total{where="engine"}'] == 1


def test_a_failed_episode_that_nobody_can_decode_is_left_out_of_the_meters(redis_url: str) -> None:
    async def check() -> None:
        async with rig(redis_url) as run:
            await run.issue("g", 2)
            await run.buffer.put_failure(failure("g", 0))
            await run.client.rpush(run.store.failures, b"mp\x06F not msgpack")
            await run.buffer.put_failure(failure("g", 1))
            assert [f.index for f, _ in await run.buffer.take_failures()] == [0, 1]

    asyncio.run(check())


def test_what_ends_a_run_passes_through_a_meter() -> None:
    nothing: Any = SimpleNamespace(config=RunConfig(), folder=None)
    watch: Any = None
    reporter = Reporter(nothing, nothing, nothing, watch)
    with pytest.raises(DependencyLost), reporter.measuring("mutual information"):
        raise DependencyLost("the learner is gone")


def test_numbers_of_an_update_that_cannot_be_computed_are_missing_and_nothing_else() -> None:
    assert measured("credit", raising) == {}
    assert measured("credit", lambda: {"groups": 1.0}) == {"groups": 1.0}


def test_a_history_that_is_no_history_leaves_credit_without_one(redis_url: str) -> None:
    async def check() -> None:
        async with rig(redis_url) as run:
            histories = GroupHistories(TaskHistory(run.link, run.run_id, decay=0.5))
            await histories.remember([group("first")], 1)
            (key,) = await run.client.keys(f"*{run.run_id}*history:task:*")
            await run.client.hset(key, "counts", b"damaged")
            assert await histories.fetch([group("second")], 1) == ((),)
            await histories.remember([group("second")], 2)

    asyncio.run(check())
