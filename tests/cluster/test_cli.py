import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from milepost.cluster import cli, evaluate, train
from milepost.cluster.base import exits
from milepost.cluster.runlog import runs
from milepost.cluster.runlog.metrics import Metrics
from milepost.cluster.runlog.runs import Status
from milepost.cluster.settings import config as configs
from tests.cluster.runlog.example_records import iteration_record

pytestmark = pytest.mark.usefixtures("own_folder")
ROOT = Path(cli.__file__).resolve().parents[1]


@pytest.fixture
def config_path(tmp_path):
    path = tmp_path / "lake.toml"
    path.write_text('[run]\nname = "lake"\n')
    return path


class Training:
    """Stands in for the training itself: remembers how it was called, and ends as it is told."""

    def __init__(self):
        self.calls, self.was_locked, self.error = [], [], None

    def __call__(self, config, folder, *, resume):
        self.calls.append((config, folder, resume))
        self.was_locked.append(folder.is_driven())
        if self.error is not None:
            raise self.error


@pytest.fixture
def trained(monkeypatch):
    training = Training()
    monkeypatch.setattr(train, "train", training)
    return training


def test_help_comes_without_heavy_imports_and_shows_examples():
    script = (
        "import sys; from milepost.cluster import cli\n"
        "try: cli.main()\n"
        "finally: print([m for m in ('torch', 'vllm', 'ray', 'deepspeed', 'transformers', 'redis', 'matplotlib')"
        " if m in sys.modules])"
    )
    command = [sys.executable, "-c", script, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    for command in ("train", "eval", "check-env", "status", "doctor"):
        assert command in done.stdout
    assert "milepost train deploy/configs/local.toml" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_module_is_a_program():
    command = [sys.executable, "-m", "milepost.cluster.cli", "train", "none.toml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "milepost: none.toml: No such file or directory; give the path of a TOML config\n"
    assert done.stdout == ""


def test_sigterm_ends_a_command_as_ctrl_c_does(monkeypatch, capfd):
    def command(**_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(cli, "app", command)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert end.value.code == 3
    assert capfd.readouterr().err == "milepost: stopped before it was done; start it again\n"


def test_train_makes_a_private_run_with_the_resolved_config(call, config_path, trained, tmp_path):
    code, _, err = call("train", config_path, "--set", "run.seed=7")
    assert (code, err) == (0, "")
    [(config, folder, resume)] = trained.calls
    assert (config.run.seed, resume) == (7, False)
    assert folder.path.parent == tmp_path / "runs" or folder.path.parent == Path("runs")
    assert configs.load(folder.resolved) == config
    assert folder.resolved.stat().st_mode & 0o077 == 0
    assert not folder.is_driven(), "the lock ends with the training"


def test_train_holds_the_lock_while_it_trains(call, config_path, trained):
    call("train", config_path)
    assert trained.was_locked == [True]


def test_resume_continues_the_run_with_its_own_config(call, config_path, trained):
    call("train", config_path, "--set", "run.seed=7")
    code, _, err = call("train", "--resume", "latest", "--set", "run.iterations=500")
    assert (code, err) == (0, "")
    (_, first, _), (config, second, resume) = trained.calls
    assert (config.run.seed, config.run.iterations, resume) == (7, 500, True)
    assert second.run_id == first.run_id
    assert configs.load(second.resolved).run.iterations == 500


def test_resume_refuses_a_changed_config_line_by_line(call, config_path, trained):
    call("train", config_path)
    code, _, err = call("train", config_path, "--resume", "latest", "--set", "learner.lr=0.5", "--set", "run.seed=9")
    assert code == 2
    lines = err.splitlines()
    assert lines[0].startswith("milepost: learner.lr was ")
    assert lines[1] == "milepost: run.seed was 0 and is now 9"
    assert len(trained.calls) == 1


def test_resume_refuses_a_run_that_another_driver_holds(call, config_path, trained):
    call("train", config_path)
    folder = trained.calls[0][1]
    with runs.find(Path("runs"), "latest").lock():
        code, _, err = call("train", "--resume", folder.run_id)
    assert code == 2
    assert "in use by another driver" in err
    assert len(trained.calls) == 1


def test_train_without_config_or_run_says_what_to_give(call):
    code, _, err = call("train")
    assert (code, err.count("\n")) == (2, 1)
    assert "give a CONFIG" in err


def test_resuming_an_unknown_run_says_which_there_are(call):
    code, _, err = call("train", "--resume", "x")
    assert code == 2
    assert "there are none yet" in err


def test_a_wrong_key_is_one_line_and_leaves_no_run(call, config_path):
    code, out, err = call("train", config_path, "--set", "run.sead=1")
    assert (code, out, err) == (2, "", "milepost: --set: unknown key run.sead; did you mean run.seed?\n")
    assert not Path("runs").exists()


CODES = {"Exit": 1, "ConfigError": 2, "Stopped": 3, "DependencyLost": 4, "WatchdogExpired": 5, "Diverged": 6}


@pytest.mark.parametrize(("end", "code"), [*CODES.items(), ("NothingLearnt", 7)])
def test_every_reason_to_end_is_one_line_with_its_code_and_in_the_log(call, config_path, trained, end, code):
    trained.error = getattr(exits, end)("what, where, what to do")
    assert call("train", config_path) == (code, "", "milepost: what, where, what to do\n")
    log = runs.find(Path("runs"), "latest").driver_log.read_text()
    assert f"exit {code}: what, where, what to do" in log


def test_an_unexpected_error_leaves_its_traceback_in_the_log_only(call, config_path, trained):
    trained.error = ZeroDivisionError("division\nby zero")
    code, _, err = call("train", config_path)
    folder = runs.find(Path("runs"), "latest")
    assert code == 1
    assert err.startswith("milepost: unexpected ZeroDivisionError: division by zero; the traceback is in ")
    assert err.count("\n") == 1
    assert "Traceback (most recent call last)" in folder.driver_log.read_text()
    assert folder.driver_log.stat().st_mode & 0o077 == 0


def test_an_interrupt_shows_no_traceback(call, config_path, trained):
    trained.error = KeyboardInterrupt()
    code, _, err = call("train", config_path)
    assert (code, err) == (3, "milepost: stopped before it was done; start it again\n")


RESULT = {
    "run": "r",
    "split": "ood",
    "policy_version": 4,
    "success": 0.5,
    "success_ci": [0.4, 0.6],
    "episodes": 10,
    "cohorts": {},
    "envs": {},
    "failed": {},
}


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    def noisy(folder, *, split, episodes):
        print("chatter of a library")
        subprocess.run(["echo", "chatter of a child"], check=True)
        return RESULT | {"run": folder.run_id, "split": split, "episodes": episodes}

    runs.create(tmp_path / "runs", "lake").resolved.write_text("")
    monkeypatch.setattr(evaluate, "evaluate_run", noisy)


@pytest.mark.usefixtures("evaluated")
def test_eval_json_prints_exactly_one_object_on_stdout(call):
    code, out, err = call("eval", "latest", "--split", "ood", "--episodes", "10", "--json")
    assert code == 0
    assert json.loads(out).keys() == RESULT.keys()
    assert (json.loads(out)["split"], json.loads(out)["episodes"]) == ("ood", 10)
    assert out.count("\n") == 1
    assert "chatter of a child" in err


@pytest.mark.usefixtures("evaluated")
def test_eval_without_json_is_a_sentence(call):
    code, out, _ = call("eval", "latest")
    assert code == 0
    assert "split heldout: success 50.0% [40.0%, 60.0%] in 100 episodes" in out


@pytest.mark.usefixtures("evaluated")
def test_eval_shows_success_by_cohort_where_there_are_several(call, monkeypatch):
    found = {
        name: {"episodes": n, "success": 0.25, "success_low": 0.1, "success_high": 0.5}
        for name, n in (("easy", 4), ("hard", 8))
    }
    monkeypatch.setitem(RESULT, "cohorts", found)
    _, out, _ = call("eval", "latest")
    assert out.splitlines()[1:] == [
        "  cohort easy: success 25.0% [10.0%, 50.0%] in 4 episodes",
        "  cohort hard: success 25.0% [10.0%, 50.0%] in 8 episodes",
    ]
    assert json.loads(call("eval", "latest", "--json")[1])["cohorts"] == found
    monkeypatch.setitem(RESULT, "cohorts", {"easy": found["easy"]})
    assert call("eval", "latest")[1].count("\n") == 1


@pytest.mark.usefixtures("evaluated")
def test_eval_refuses_an_unknown_split_and_no_episodes(call):
    assert call("eval", "latest", "--split", "test")[0] == 2
    assert call("eval", "latest", "--episodes", "0")[0] == 2


def test_status_shows_the_run(call, config_path, trained):
    call("train", config_path)
    folder = trained.calls[0][1]
    folder.write_status(Status(pid=1, phase="training", iteration=2, iterations=5))
    with Metrics(folder.metrics) as metrics:
        metrics.record(iteration_record(2))
    code, out, _ = call("status")
    assert code == 0
    assert "training (no driver is running" in out
    assert "iteration  2 of 5" in out


def test_check_env_shows_an_episode_and_passes_a_good_environment_with_options(call):
    code, out, _ = call("check-env", "milepost.envs.frozen_lake:FrozenLakeText", "--set", "size=3", "--episodes", "2")
    episode, findings = out.split("\n\n")
    assert code == 0
    assert episode.startswith("an episode:\n  observation  You are P.")
    assert all(line.startswith("ok") for line in findings.splitlines())


def test_check_env_finds_the_users_module_in_the_working_folder_and_reports_errors(call, tmp_path):
    (tmp_path / "my_lake_env.py").write_text(
        "import gymnasium\n\n\nclass Mine(gymnasium.Env):\n"
        "    def __init__(self, size):\n        raise ValueError(size)\n"
    )
    code, out, err = call("check-env", "my_lake_env:Mine", "--set", "size=3")
    assert code == 2
    assert "ValueError: 3" in out
    assert err == "milepost: my_lake_env:Mine: 1 error(s); fix them before training on it\n"


def test_doctor_prints_a_level_for_every_line_and_fails_only_with_a_reason(call, config_path):
    code, out, err = call("doctor", config_path)
    lines = out.splitlines()
    assert all(line.split()[0] in ("ok", "warn", "fail") for line in lines)
    assert any("embedded Redis" in line and line.startswith("ok") for line in lines)
    assert any(line.startswith("ok    torch ") for line in lines)
    failed = sum(line.startswith("fail") for line in lines)
    assert (code, bool(err)) == ((2, True) if failed else (0, False))


def test_doctor_names_a_bad_environment_and_a_taken_port(call, config_path, tmp_path):
    with Metrics(tmp_path / "m.jsonl") as metrics:
        port = f"metrics.port={metrics.port}"
        code, out, err = call("doctor", config_path, "--set", "env.path=no.such:Env", "--set", port)
    assert code == 2
    assert "fail  env.path: " in out
    assert f"fail  metrics.port {port.split('=')[1]} on 127.0.0.1" in out
    assert "check(s) failed" in err


def test_doctor_parity_needs_a_config(call):
    code, _, err = call("doctor", "--parity")
    assert code == 2
    assert "give the CONFIG" in err
