"""A user's own credit strategy, from its file in the working folder to a run, an experiment and `milepost credit`."""

import json
import re
from pathlib import Path

import pytest
import tomli_w

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.experiment import plan as experiment_plan
from milepost.cluster.preflight import check_start, check_world
from milepost.cluster.settings.config import RunConfig, load
from milepost.cluster.settings.own_credit import check_credit
from milepost.learner.credit.interchange import encode
from milepost.learner.credit.strategies.crbc import CRBCConfig
from milepost.learner.credit.strategies.custom import CustomConfig
from tests.learner.credit.strategies.own_strategies import HERE
from tests.learner.credit.toy4 import toy4

ROOT = Path(__file__).resolve().parents[3]
SECTION = (ROOT / "docs" / "credit.md").read_text().partition("## Your own strategy")[2].partition("\n## ")[0]
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", SECTION, flags=re.DOTALL)
(TOML,) = re.findall(r"```toml\n(.*?)```", SECTION, flags=re.DOTALL)


def own(name: str) -> RunConfig:
    return RunConfig.model_validate({"credit": {"path": f"{HERE}:{name}"}, "env": {"train_size": 2}})


@pytest.fixture
def folder(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader of docs/credit.md has: the strategy and the configuration in the folder they start from."""
    (own_folder / "late_turns.py").write_text(EXAMPLE)
    (own_folder / "config.toml").write_text(TOML)
    monkeypatch.syspath_prepend(str(own_folder))
    return own_folder


def test_the_example_of_the_docs_is_short_and_passes_what_is_checked_before_a_run(folder: Path) -> None:
    assert len(EXAMPLE.splitlines()) <= 25
    config = load(folder / "config.toml")
    assert check_credit(config.credit) == []
    assert check_world(config)


def test_the_example_of_the_docs_scores_recorded_groups(folder: Path, call) -> None:
    (folder / "groups.jsonl").write_bytes(encode(toy4()) + b"\n")
    name = "late_turns:LateTurns"
    arguments = ("credit", "groups.jsonl", "--strategy", f"{name},starpo", "--json", "--set", "credit.options.fade=0.5")
    code, out, err = call(*arguments)
    mine, starpo = map(json.loads, out.splitlines())
    assert (code, err, mine["strategy"]) == (0, "", name)
    assert mine["traj_adv"] == starpo["traj_adv"]
    # T1 of toy4 won: .866 in its last turn, half of it in the turn before.
    assert mine["total"][0] == pytest.approx([0.4330, 0.8660], abs=5e-5)


@pytest.mark.parametrize(
    ("strategy", "overrides", "complaint"),
    [
        (f"{HERE}:Raises", [], f"credit.path: '{HERE}:Raises': assign raised ZeroDivisionError: nothing to divide by"),
        ("nowhere:Mine", [], "credit.path: 'nowhere:Mine': no module named 'nowhere'; install it, or start from"),
        ("custom", [], "--strategy custom: no such strategy; known: starpo, "),
        (f"{HERE}:LateTurns", ["credit.fade=1"], "no chosen strategy has the key fade; known: invalid_penalty, "),
        (f"{HERE}:LateTurns", ["credit.path=x:Y"], "no chosen strategy has the key path"),
        (f"{HERE}:LateTurns", ["credit.options.fade=[1]"], f"credit.options.fade.bool of strategy {HERE}:LateTurns: "),
    ],
)
def test_milepost_credit_refuses_what_is_no_strategy(own_folder: Path, call, strategy, overrides, complaint) -> None:
    (own_folder / "groups.jsonl").write_bytes(encode(toy4()) + b"\n")
    settings = [part for override in overrides for part in ("--set", override)]
    code, out, err = call("credit", "groups.jsonl", "--strategy", strategy, *settings)
    assert (code, out) == (2, "")
    assert complaint in err.splitlines()[0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Nobody", f"module {HERE} has no 'Nobody'"),
        ("Raises", "assign raised ZeroDivisionError: nothing to divide by"),
        ("FirstComesFirst", "the credit depends on the order of the trajectories"),
    ],
)
def test_a_run_with_a_wrong_strategy_is_refused_before_anything_starts(name: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_world(own(name))
    assert str(caught.value) == f"credit.path: '{HERE}:{name}': {reason}"


def test_a_strategy_that_hangs_is_refused_at_the_deadline(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_folder / "hanging_credit.py").write_text("import time\n\nwhile True:\n    time.sleep(0.1)\n")
    monkeypatch.syspath_prepend(str(own_folder))
    config = RunConfig.model_validate({"credit": {"path": "hanging_credit:Mine"}, "actors": {"env_timeout_s": 0.5}})
    with pytest.raises(ConfigError, match=r"the credit strategy did not return within actors.env_timeout_s = 0\.5"):
        check_world(config)


def test_a_strategy_that_reads_progress_needs_an_environment_that_reports_it() -> None:
    config = own("ReadsProgress")
    assert check_world(config), "FrozenLake reports it"
    coin = config.model_copy(update={"env": config.env.model_copy(update={"path": "tests.coin_env:CoinEnv"})})
    with pytest.raises(ConfigError, match=r"reads info\['progress'\].*CoinEnv does not report: .* choose another"):
        check_world(coin)


def test_a_warning_is_said_at_the_start_and_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    check_start(own("NotCentred"))
    assert f"milepost: credit.path: '{HERE}:NotCentred': trajectories that are all equal" in capsys.readouterr().err


def test_a_built_in_strategy_is_not_tried() -> None:
    assert check_credit(CRBCConfig()) == []


def test_an_experiment_checks_the_strategies_of_all_arms_before_the_first_starts(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("[run]\niterations = 6\n")

    def write(name: str) -> Path:
        arms = [{"name": "own", "overrides": [f"credit.path={HERE}:{name}"]}, {"name": "crbc"}]
        configs = [{"name": "lake", "path": str(tmp_path / "base.toml")}]
        path = tmp_path / "experiment.toml"
        path.write_text(tomli_w.dumps({"name": "trial", "seeds": [0], "configs": configs, "arms": arms}))
        return path

    own_cell, _ = experiment_plan.plan(experiment_plan.load(write("LateTurns")), tmp_path)
    assert isinstance(own_cell.run.credit, CustomConfig)
    with pytest.raises(ConfigError, match=r"^cell lake-own-0: credit.path: .*depends on the order"):
        experiment_plan.plan(experiment_plan.load(write("FirstComesFirst")), tmp_path)
