"""What credit goes by is said before a run: success where the environment reports it, else returns."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from milepost.actors.worker import ActorConfig
from milepost.cluster.preflight import basis_of_credit
from milepost.cluster.replay.ledger import Balance
from milepost.cluster.run import Run
from milepost.cluster.runlog import runs
from milepost.cluster.runlog.console import LiveView
from milepost.cluster.runlog.metrics import Metrics
from milepost.cluster.settings.config import RunConfig
from milepost.cluster.settings.credit_basis import credit_basis
from milepost.envs.scenarios import ScenarioConfig, ScenarioSet
from milepost.envs.types import Task
from milepost.learner.credit.strategies.registry import settings as credit_settings


def said(env: str, *, seconds: float = 5.0, **credit: object) -> str | None:
    config = RunConfig(credit=credit_settings(**credit))
    task = Task(env=env, seed=0, split="train", options={})
    return credit_basis(config, task, seconds=seconds)


SILENT, TELLS = "tests.broken_envs:SaysNoSuccess", "tests.broken_envs:CountingEnv"


@pytest.mark.parametrize("strategy", ["crbc", "g2po", "graphgpo", "graphhca", "pbrs", "salt"])
def test_a_strategy_that_goes_by_success_says_whether_there_is_any(strategy: str) -> None:
    assert said(TELLS, strategy=strategy) == "credit: success as the environment reports it"
    assert said("milepost.envs.key_door:KeyDoorText", strategy=strategy) == said(TELLS)  # at the end only
    assert said(SILENT, strategy=strategy) == (
        'credit: returns, because the environment reports no success to learn from (info["success"])'
    )


def test_environments_that_differ_in_it_are_told_one_by_one() -> None:
    envs = tuple(ScenarioConfig(path=path, name=name, train_size=4) for name, path in (("a", TELLS), ("b", SILENT)))
    config = RunConfig(env=envs)
    assert basis_of_credit(config, ScenarioSet(envs)) == (
        "a: credit: success as the environment reports it; "
        'b: credit: returns, because the environment reports no success to learn from (info["success"])'
    )
    alike = (envs[0], envs[0].model_copy(update={"name": "c"}))
    assert basis_of_credit(config, ScenarioSet(alike)) == "credit: success as the environment reports it"


def test_success_that_is_for_people_is_none_to_learn_from() -> None:
    assert said("milepost.envs.bandit:TwoArmedBandit") == said(SILENT)


def test_an_end_that_is_too_far_away_leaves_the_question_open() -> None:
    line = said(SILENT, seconds=0.0)
    assert line is not None
    assert line.startswith("credit: success if an episode's end reports it")
    assert said("tests.broken_envs:RaisesInStep") == line


def test_success_that_was_asked_for_and_is_not_there_is_a_warning() -> None:
    assert "any return above 0 counts as one" in (said(SILENT, objective="success") or "")
    assert said(TELLS, objective="success") == "credit: success as the environment reports it"


@pytest.mark.parametrize(
    "credit",
    [
        {"strategy": "starpo"},
        {"strategy": "gigpo"},
        {"objective": "return"},
        {"strategy": "pbrs", "potential": "progress"},
    ],
)
def test_a_strategy_that_reads_no_success_says_nothing(credit: dict[str, object]) -> None:
    assert said(SILENT, **credit) is None


def test_a_run_says_it_on_the_screen_before_it_trains(tmp_path: Path) -> None:
    config = RunConfig(env=ScenarioConfig(path=SILENT, train_size=4, heldout_size=2))
    folder = runs.create(tmp_path, "silent")
    said: list[str] = []

    async def nothing_yet() -> Balance:
        return Balance(0, {"env_failed": 0, "infra_failed": 0})

    with Metrics(folder.metrics) as metrics, LiveView(run_id=folder.run_id, iterations=8) as view:
        view.note = said.append
        run = Run(config, folder, view, metrics)
        run._system.ledger = SimpleNamespace(balance=nothing_yet)
        asyncio.run(run.reporter.training_begins(0))
    assert said == ['credit: returns, because the environment reports no success to learn from (info["success"])']


def test_a_later_step_that_hangs_leaves_the_question_to_the_episodes() -> None:
    config = RunConfig(
        env=ScenarioConfig(path="tests.broken_envs:HangsInStep", train_size=4, heldout_size=2),
        actors=ActorConfig(env_timeout_s=0.2),
    )
    assert basis_of_credit(config, ScenarioSet(config.env)) is None
