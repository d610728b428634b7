"""When a run gives up: with the watch's verdict (saved, and how to go on), or where episodes do nothing but fail.

The same holds in an evaluation: what fails there is played again, until it is clear that all is lost.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from milepost.actors.worker import ActorConfig
from milepost.cluster import evaluate
from milepost.cluster.base.exits import ConfigError, DependencyLost, Diverged
from milepost.cluster.evaluation import tables
from milepost.cluster.histories import GroupHistories
from milepost.cluster.recovery import Recovery
from milepost.cluster.run import Run
from milepost.cluster.runlog import runs
from milepost.cluster.runlog.console import LiveView
from milepost.cluster.runlog.metrics import Metrics
from milepost.cluster.settings import config as configs
from milepost.cluster.system import System
from milepost.envs.scenarios import ScenarioConfig, ScenarioSet
from milepost.envs.types import Boundary, Failure, Task, Trajectory
from milepost.learner.health.collapse import CollapseConfig
from milepost.reward.evaluators.summary import Summary
from tests.cluster.replay.buffer_rig import Rig, failure, rig, trajectory
from tests.cluster.runlog.example_records import iteration_record

EPISODES = 10
Fails = Callable[[int, int], Boundary | None]
"""Round and number of an episode -> what it fails in, None if it is played to its end."""


@pytest.mark.parametrize("action", ["stop", "warn"])
def test_a_run_whose_filter_keeps_nothing_is_given_up_only_if_asked(tmp_path: Path, action: str) -> None:
    config = configs.RunConfig(
        env=ScenarioConfig(train_size=4, heldout_size=2), collapse=CollapseConfig(action=action, stop_empty=2)
    )
    folder = runs.create(tmp_path, "empty")
    with Metrics(folder.metrics) as metrics, LiveView(run_id=folder.run_id, iterations=8) as view:
        for iteration in (1, 2):
            metrics.record(iteration_record(iteration, groups_trained=0, groups_filtered=8))
        run = Run(config, folder, view, metrics)  # as after a restart: what was seen is read from the records
        run.progress.version = run.progress.saved = 2
        run._recovery = Recovery(run._system, run.reporter, run.progress, GroupHistories(None))
        if action == "warn":
            asyncio.run(run._give_up_on_collapse())
            return
        with pytest.raises(Diverged) as end:
            asyncio.run(run._give_up_on_collapse())
    assert end.value.code == 6
    assert "the filter kept no group for 2 iterations" in str(end.value)
    assert f"the newest checkpoint is of version 2: milepost train --resume {os.path.relpath(folder.path)}" in str(
        end.value
    )


def test_episodes_that_do_nothing_but_fail_end_a_run_and_the_last_ones_say_whose_fault_it_is(
    tmp_path: Path, redis_url: str
) -> None:
    config = configs.RunConfig(
        env=ScenarioConfig(train_size=4, heldout_size=2), actors=ActorConfig(give_up_after_s=1e-6)
    )
    system = System(config, runs.create(tmp_path, "failing"), ScenarioSet(config.env))
    system.engines = SimpleNamespace(is_replacing=False)
    size = config.run.group_size

    async def groups(run: Rig, name: str, count: int, boundary: Boundary | None) -> None:
        for group_id in (f"{name}{number}" for number in range(count)):
            assert await run.issue(group_id, size)
            for index in range(size):
                await run.buffer.put_with_backpressure(
                    failure(group_id, index, boundary) if boundary else trajectory(group_id, index)
                )
        await system._give_up_on_hopeless()

    async def failing() -> None:
        async with rig(redis_url) as run:
            system.ledger = run.ledger
            await groups(run, "env", 7, "env")
            await groups(run, "good", 1, None)  # from here on nothing was in vain
            await groups(run, "lost", 7, "infra")
            with pytest.raises(
                DependencyLost, match=f"^{8 * size} episodes in a row failed within 0 s; the last one: .*no"
            ):
                await groups(run, "last", 1, "infra")
            await groups(run, "better", 1, None)
            await groups(run, "bad", 7, "env")
            with pytest.raises(ConfigError, match=f"^{8 * size} episodes in a row failed"):
                await groups(run, "worse", 1, "env")

    asyncio.run(failing())


class Workers:
    """Workers whose episodes fail as `fails` says."""

    def __init__(self, fails: Fails) -> None:
        self.rounds: list[list[int]] = []
        self.fails = fails

    async def play(self, tasks: list[tuple[int, Task]], _stall_timeout_s: float) -> list[Trajectory | Failure]:
        self.rounds.append([number for number, _ in tasks])
        ends = [(number, self.fails(len(self.rounds), number)) for number, _ in tasks]
        return [
            failure("eval", number, boundary) if boundary else trajectory("eval", number) for number, boundary in ends
        ]


def evaluated(workers: Workers, give_up_after_s: float) -> Summary:
    config = configs.RunConfig(
        env=ScenarioConfig(train_size=4, heldout_size=2), actors=ActorConfig(give_up_after_s=give_up_after_s)
    )
    system: Any = SimpleNamespace(workers=workers, scenarios=ScenarioSet(config.env), config=config)
    return asyncio.run(evaluate.evaluate(system, "heldout", EPISODES))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(evaluate, "_LONGEST_PAUSE_S", 0.01)


@pytest.mark.usefixtures("quick")
def test_an_outage_during_an_evaluation_costs_it_no_episode() -> None:
    workers = Workers(lambda round_, number: "env" if round_ < 4 and number >= 3 else None)
    assert evaluated(workers, give_up_after_s=60).episodes == EPISODES
    assert workers.rounds == [list(range(10)), *[list(range(3, 10))] * 3]


@pytest.mark.usefixtures("quick")
def test_a_fifth_that_fails_is_left_out_and_not_played_again() -> None:
    workers = Workers(lambda _, number: "env" if number < 2 else None)
    assert evaluated(workers, give_up_after_s=60).episodes == 8
    assert len(workers.rounds) == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("boundary", "end"), [("env", ConfigError), ("engine", DependencyLost)])
def test_what_goes_on_failing_ends_it_with_the_first_failure(boundary: Boundary, end: type[Exception]) -> None:
    workers = Workers(lambda _, number: boundary if number else None)
    with pytest.raises(end, match=f"^9 of 10 evaluation episodes failed; the first in {boundary}: "):
        evaluated(workers, give_up_after_s=0.05)
    assert len(workers.rounds) > 1
    assert workers.rounds[-1] == list(range(1, 10))


class Places(Workers):
    """Workers whose episodes fail by environment."""

    async def play(self, tasks: list[tuple[int, Task]], _stall_timeout_s: float) -> list[Trajectory | Failure]:
        self.rounds.append([number for number, _ in tasks])
        ends = [(number, task, self.fails(len(self.rounds), task.env_name == "shop")) for number, task in tasks]
        return [
            msgspec.structs.replace(failure("eval", n, b) if b else trajectory("eval", n), task=task)
            for n, task, b in ends
        ]


def evaluated_both(workers: Workers) -> Summary:
    envs = tuple(ScenarioConfig(name=name, train_size=4, heldout_size=2) for name in ("lake", "shop"))
    config = configs.RunConfig(env=envs, actors=ActorConfig(give_up_after_s=0.05))
    system: Any = SimpleNamespace(workers=workers, scenarios=ScenarioSet(envs), config=config)
    return asyncio.run(evaluate.evaluate(system, "heldout", EPISODES))


@pytest.mark.usefixtures("quick")
def test_an_environment_that_fails_is_left_out_of_an_evaluation_and_the_others_are_judged() -> None:
    workers = Places(lambda _, is_shop: "env" if is_shop else None)
    found = evaluated_both(workers)
    assert {name: part.episodes for name, part in found.envs.items()} == {"lake": EPISODES}
    assert found.episodes == EPISODES
    assert found.failed == {"shop": "10 of 10 evaluation episodes failed; the first in env: ValueError: no"}
    assert workers.rounds[0] == list(range(20))
    assert all(round_ == list(range(10, 20)) for round_ in workers.rounds[1:]), "only what failed is played again"
    line = evaluate.record(found, split="heldout", iteration=3, version=3, time_s=1.0)
    assert (line.failed, list(line.envs)) == (found.failed, ["lake"])


@pytest.mark.usefixtures("quick")
def test_an_evaluation_has_as_many_episodes_of_each_environment() -> None:
    found = evaluated_both(Places(lambda *_: None))
    assert {name: part.episodes for name, part in found.envs.items()} == {"lake": EPISODES, "shop": EPISODES}


@pytest.mark.usefixtures("quick")
def test_an_evaluation_in_which_every_environment_fails_ends_the_run() -> None:
    with pytest.raises(ConfigError, match=r"^20 of 20 evaluation episodes failed; the first in env: ValueError: no"):
        evaluated_both(Places(lambda *_: "env"))


@pytest.mark.usefixtures("quick")
def test_the_engine_that_serves_all_environments_is_no_fault_of_one() -> None:
    with pytest.raises(DependencyLost, match="the first in engine: "):
        evaluated_both(Places(lambda _, is_shop: "engine" if is_shop else None))


def test_what_eval_prints_names_every_environment_and_what_was_left_out() -> None:
    lake = {"episodes": 4, "success": 0.25, "success_low": 0.1, "success_high": 0.5}
    result = {"run": "r", "policy_version": 3, "split": "ood", "success": 0.25, "success_ci": [0.1, 0.5], "episodes": 4}
    parts = {"envs": {"lake": lake}, "cohorts": {}, "failed": {"shop": "4 of 4 episodes failed"}}
    assert tables.sentence(result | parts).splitlines()[1:] == [
        "  environment lake: success 25.0% [10.0%, 50.0%] in 4 episodes",
        "  environment shop is left out: 4 of 4 episodes failed",
    ]
