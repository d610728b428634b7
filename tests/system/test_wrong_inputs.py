"""Wrong inputs: one clear line each, exit code 2, nothing started, nothing left behind."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from milepost.cluster import cli, preflight
from milepost.cluster.replay import redis_server
from milepost.cluster.replay.client import connect_sync
from tests.system.driving import ROOT, write_config

Refused = Callable[..., str]


@pytest.fixture
def refused(
    tmp_path: Path, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Refused:
    """Runs `milepost train` with overrides, and gives the one line with which it refuses."""

    def refuse(**sections: dict[str, object]) -> str:
        config = write_config(tmp_path, tiny_policy, **sections)
        monkeypatch.chdir(ROOT)
        before = set(psutil.Process().children(recursive=True))
        monkeypatch.setattr(sys, "argv", ["milepost", "train", str(config)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        assert end.value.code == 2, err
        assert err.startswith("milepost: ")
        assert err.count("\n") == 1, err
        assert "Traceback" not in out
        assert set(psutil.Process().children(recursive=True)) <= before
        assert not (tmp_path / "runs").exists(), "a run that never began left a folder"
        return err

    return refuse


def test_an_unknown_key_is_named_with_the_nearest_known_one(refused: Refused) -> None:
    assert "unknown key learner.learning_rate" in refused(learner={"learning_rate": 1e-3})
    assert "unknown key run.sead; did you mean run.seed?" in refused(run={"sead": 1})


def test_a_missing_model_folder_is_named(refused: Refused, tmp_path: Path) -> None:
    line = refused(model={"path": str(tmp_path / "nowhere")})
    assert f"there is no folder {tmp_path / 'nowhere'}; set model.path" in line


def test_a_model_folder_whose_files_do_not_fit_each_other_is_refused_before_anything_starts(
    refused: Refused, tiny_policy: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_policy, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors is not a whole safetensors file" in refused(model={"path": str(folder)})
    longer = {"max_model_len": 2048}
    assert "engine.max_model_len = 2048 is more than the model's 1024" in refused(engine=longer)
    small = {"source": "warmup", "path": "", "warmup": {"max_positions": 1024}}
    assert "= 2048 is more than model.warmup.max_positions = 1024" in refused(engine=longer, model=small)


def test_a_model_that_shared_memory_has_no_room_for_is_refused(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = shutil.disk_usage("/dev/shm")._replace(free=2**20)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: room)
    line = refused()
    assert "weights on their way to the engines need 0.0 GiB of /dev/shm" in line
    assert "0.0 GiB are free: give the container more (docker run --shm-size)" in line


def test_a_taken_metrics_port_is_named_with_the_way_out(refused: Refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(metrics={"port": port})
    assert f"metrics.port {port} on 127.0.0.1 cannot be used" in line
    assert "set metrics.port = 0" in line


def test_a_bad_environment_path_is_named(refused: Refused) -> None:
    assert "'tests.no_such_env:Env'" in refused(env={"path": "tests.no_such_env:Env", "options": {}})
    assert "NoSuchEnv" in refused(env={"path": "tests.coin_env:NoSuchEnv", "options": {}})


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        ("NanReward", "step: reward must be finite, found nan"),
        ("RaisesInReset", "reset raised RuntimeError: broken in reset"),
        ("RaisesInStep", "step raised RuntimeError: broken in step"),
        ("ReturnsNoText", "step: observation must be text (str), found int 0"),
    ],
)
def test_a_broken_environment_is_found_out_in_one_step(refused: Refused, env: str, complaint: str) -> None:
    path = f"tests.broken_envs:{env}"
    line = refused(env={"path": path, "options": {}})
    assert f"{path}: {complaint}" in line
    assert f"milepost check-env {path}" in line


def test_an_environment_that_hangs_is_given_up_at_its_deadline(refused: Refused) -> None:
    line = refused(env={"path": "tests.broken_envs:HangsInStep", "options": {}}, actors={"env_timeout_s": 1.0})
    assert "tests.broken_envs:HangsInStep: step did not return within actors.env_timeout_s = 1" in line


@pytest.fixture
def evicting_redis(tmp_path: Path) -> Iterator[str]:
    with redis_server.start(tmp_path / "redis") as server:
        client = connect_sync(server.url)
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.close()
        yield server.url


def test_a_redis_that_evicts_is_refused_with_the_command_that_mends_it(
    refused: Refused, evicting_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILEPOST_TEST_REDIS", evicting_redis)
    line = refused(buffer={"url_env": "MILEPOST_TEST_REDIS"})
    assert "maxmemory-policy allkeys-lru" in line
    assert "CONFIG SET maxmemory-policy noeviction" in line
    assert evicting_redis not in line
