import errno
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time

import pytest

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.runlog import runs
from milepost.cluster.runlog.report import write_report
from milepost.cluster.runlog.runs import RunFolder, Status
from milepost.cluster.runlog.saved_policy import pinned_policy


def made(runs_dir, name):
    folder = RunFolder(runs_dir / name)
    folder.path.mkdir(parents=True)
    folder.resolved.write_text("")
    return folder


def test_a_new_run_folder_is_private_and_named_by_time_and_name(tmp_path):
    folder = runs.create(tmp_path / "runs", "frozenlake")
    assert re.fullmatch(r"\d{8}-\d{6}-frozenlake", folder.run_id)
    for path in (folder.path, folder.checkpoints, folder.logs, folder.redis):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_runs_of_the_same_second_get_different_folders(tmp_path):
    folders = [runs.create(tmp_path, "a") for _ in range(5)]
    assert len({folder.path for folder in folders}) == 5


def test_a_folder_that_cannot_be_made_is_a_config_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run\.runs_dir"):
        runs.create(tmp_path / "file" / "runs", "a")


def test_what_a_resumed_run_starts_from_outlives_its_checkpoint(tmp_path):
    folder = runs.create(tmp_path, "a")
    saved = folder.checkpoints / "step-00000004" / "policy"
    saved.mkdir(parents=True)
    (saved / "tokenizer.json").write_text("{}")
    folder.keep_start(saved, 4)
    shutil.rmtree(saved.parent)
    assert {path.name for path in folder.start.iterdir()} == {"tokenizer.json", "milepost.json"}
    assert (folder.start / "tokenizer.json").read_text() == "{}"


def test_latest_is_the_newest_run_with_a_resolved_config(tmp_path):
    made(tmp_path, "20260101-000000-a")
    made(tmp_path, "20260102-000000-b")
    (tmp_path / "20260103-000000-c").mkdir()
    assert runs.find(tmp_path, "latest").run_id == "20260102-000000-b"


def test_a_run_is_found_by_id_by_end_and_by_path(tmp_path):
    folder = made(tmp_path, "20260101-000000-lake")
    made(tmp_path, "20260101-000001-bandit")
    for wanted in (folder.run_id, "lake", str(folder.path)):
        assert runs.find(tmp_path, wanted).path == folder.path


def test_an_unknown_run_lists_those_there_are(tmp_path):
    made(tmp_path, "20260101-000000-lake")
    with pytest.raises(ConfigError, match=r"no run 'x' in .*there are: 20260101-000000-lake"):
        runs.find(tmp_path, "x")
    with pytest.raises(ConfigError, match="there are none yet"):
        runs.find(tmp_path / "empty", "latest")


def test_an_ambiguous_name_lists_the_candidates(tmp_path):
    made(tmp_path, "20260101-000000-lake")
    made(tmp_path, "20260102-000000-lake")
    with pytest.raises(ConfigError, match="names 2 runs"):
        runs.find(tmp_path, "lake")


def test_the_status_reads_back_and_leaves_no_scratch_file(tmp_path):
    folder = made(tmp_path, "a")
    assert folder.read_status() is None
    folder.write_status(Status(pid=7, phase="training", iteration=3, iterations=9, ports={"metrics": 1234}))
    read = folder.read_status()
    assert (read.pid, read.phase, read.iteration, read.ports) == (7, "training", 3, {"metrics": 1234})
    assert read.updated_at
    assert sorted(path.name for path in folder.path.iterdir()) == ["resolved.toml", "status.json"]


def test_a_damaged_status_says_what_to_do(tmp_path):
    folder = made(tmp_path, "a")
    folder.status.write_text("{")
    with pytest.raises(ConfigError, match=r"status\.json.*delete the file"):
        folder.read_status()


def test_two_drivers_cannot_hold_one_folder_and_a_killed_one_lets_go(tmp_path):
    folder = made(tmp_path, "a")
    script = (
        "import sys, pathlib; from milepost.cluster.runlog.runs import RunFolder\n"
        "with RunFolder(pathlib.Path(sys.argv[1])).lock():\n    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        assert folder.is_driven()
        with pytest.raises(ConfigError, match="in use by another driver"), folder.lock():
            pytest.fail("the lock was given twice")
    finally:
        holder.kill()
        holder.communicate(timeout=10)
    assert not folder.is_driven()
    with folder.lock():
        assert folder.is_driven()


def test_an_evaluation_reads_one_policy_while_a_run_replaces_it(tmp_path):
    folder = runs.create(tmp_path, "a")
    newest = 0

    def save(version):
        saved = folder.checkpoints / f"{version}"
        saved.mkdir()
        for part in ("config.json", "model.safetensors", "tokenizer.json"):
            (saved / part).write_text(str(version))
        folder.keep_policy(saved, version)

    def train():
        nonlocal newest
        while not stop.wait(0.005):
            newest += 1
            save(newest)

    save(0)
    stop = threading.Event()
    run = threading.Thread(target=train)
    run.start()
    try:
        for _ in range(20):
            with pinned_policy(folder) as (policy, version):
                seen, deadline = newest, time.monotonic() + 30
                while newest < seen + 2:
                    assert time.monotonic() < deadline, "no checkpoint came meanwhile"
                    time.sleep(0.005)
                parts = {path.name: path.read_text() for path in policy.iterdir() if path.name != "milepost.json"}
                assert parts == dict.fromkeys(("config.json", "model.safetensors", "tokenizer.json"), str(version))
            assert not policy.exists()
    finally:
        stop.set()
        run.join()


def test_an_evaluation_of_a_run_without_a_policy_says_so(tmp_path):
    folder = runs.create(tmp_path, "a")
    with pytest.raises(ConfigError, match="holds no policy of ours"), pinned_policy(folder):
        pass
    assert not list(folder.path.glob(".pinned-*"))


def test_what_a_full_disk_does_not_take_leaves_no_scratch_file(tmp_path, monkeypatch):
    folder, saved = runs.create(tmp_path, "full"), tmp_path / "saved"
    saved.mkdir()
    before = set(folder.path.iterdir())

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        folder.write_status(Status(pid=1, phase="training"))
    with pytest.raises(OSError, match="No space"):
        folder.keep_policy(saved, 1)
    with pytest.raises(OSError, match="No space"):
        write_report(folder)
    assert set(folder.path.iterdir()) == before
