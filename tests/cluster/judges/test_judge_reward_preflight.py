"""A judge as the reward is verified and tried before a run, and has the time it needs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from milepost.cluster.base.exits import ConfigError, DependencyLost
from milepost.cluster.preflight import check_world
from milepost.cluster.runlog import runs
from milepost.cluster.settings import config as configs
from milepost.cluster.settings.config import RunConfig
from milepost.cluster.start import keep_judge
from tests.reward.judges.judge_rig import serving, user_text, verdict, write_judge

pytestmark = pytest.mark.usefixtures("own_folder")
CONFIG = """\
[env]
path = "tests.broken_envs:CountingEnv"
[reward]
path = "kind_judge:reward"
[actors]
env_timeout_s = 20
"""
MODULE = """\
from pathlib import Path

from milepost.reward.judges.reward import JudgeReward

reward = JudgeReward(Path(__file__).parent / "judge.toml")
"""


@pytest.fixture
def folder(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project whose reward is a judge."""
    (own_folder / "kind_judge.py").write_text(MODULE)
    (own_folder / "run.toml").write_text(CONFIG)
    monkeypatch.syspath_prepend(str(own_folder))
    yield own_folder
    sys.modules.pop("kind_judge", None)


def test_a_run_is_not_resumed_with_another_judge(folder: Path) -> None:
    write_judge(folder, "http://127.0.0.1:9/v1")
    run, config = runs.create(folder, "judged"), configs.load(folder / "run.toml")
    keep_judge(config, run)
    keep_judge(config, run)  # resumed as it was
    sys.modules.pop("kind_judge")
    write_judge(folder, "http://127.0.0.1:9/v1", "max_chars = 2000", max_chars=2000)
    with pytest.raises(ConfigError, match=r"judge tester: the run began with .* and this is .* another reward"):
        keep_judge(config, run)


def test_a_run_without_a_judge_keeps_nothing(own_folder: Path) -> None:
    run = runs.create(own_folder, "plain")
    keep_judge(RunConfig(), run)
    assert not (run.path / "judge.json").exists()


def check(folder: Path) -> None:
    check_world(configs.load(folder / "run.toml"))


def test_the_judge_is_asked_about_a_rehearsed_episode(folder: Path) -> None:
    with serving(lambda body: verdict(body, score=1)) as served:
        write_judge(folder, served.url, "deadline_s = 10")
        check(folder)
    [asked] = served.asked
    assert user_text(asked).startswith("The environment reports: ")


def test_a_judge_that_gives_no_verdict_ends_no_run_later_but_now(folder: Path) -> None:
    with serving(lambda _: "no") as served:
        write_judge(folder, served.url, "deadline_s = 10")
        with pytest.raises(ConfigError, match="judge tester: asked 1 times: not one JSON object"):
            check(folder)


def test_a_judge_that_may_take_longer_than_a_reward_is_refused(folder: Path) -> None:
    write_judge(folder, "http://127.0.0.1:9/v1", "deadline_s = 21")
    with pytest.raises(ConfigError, match=r"= 21 s is more than a reward may take, actors\.env_timeout_s = 20"):
        check(folder)


def test_its_pins_its_family_and_its_server_are_looked_at(folder: Path) -> None:
    path = write_judge(folder, "http://127.0.0.1:9/v1", "deadline_s = 10")
    with pytest.raises(DependencyLost, match="start its server"):
        check(folder)
    pinned = path.read_text()
    for changed, told in (
        (pinned.replace("how well", "whether"), "prompt_sha256: the file pins"),
        (pinned.replace('"mistral"', '"llama"'), "it is a llama and the policy a llama"),
    ):
        sys.modules.pop("kind_judge")
        path.write_text(changed)
        with pytest.raises(ConfigError, match=told):
            check(folder)
