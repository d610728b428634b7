"""A cached model folder is complete or absent, and is built once."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from milepost.learner.first_policy import model_cache
from milepost.learner.first_policy.model_cache import ModelCacheError, build_once


def _write(folder: Path) -> None:
    (folder / "weights").write_text("1")


def test_a_folder_is_built_once(tmp_path: Path) -> None:
    builds: list[Path] = []

    def build(folder: Path) -> None:
        builds.append(folder)
        _write(folder)

    first = build_once(tmp_path / "deep" / "model", build)
    assert build_once(tmp_path / "deep" / "model", build) == first
    assert len(builds) == 1
    assert [path.name for path in first.iterdir()] == ["weights"]


def test_a_build_that_fails_publishes_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        _write(folder)
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        build_once(tmp_path / "model", fail)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    assert build_once(tmp_path / "model", _write).is_dir()


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys\n"
        "from milepost.learner.first_policy.model_cache import build_once\n"
        "def die(folder):\n"
        "    (folder / 'torn').write_text('half')\n"
        "    os._exit(9)\n"
        "build_once(pathlib.Path(sys.argv[1]), die)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "model")], timeout=60, check=False)
    assert done.returncode == 9
    assert (tmp_path / "model.partial" / "torn").exists()
    built = build_once(tmp_path / "model", _write)
    assert [path.name for path in built.iterdir()] == ["weights"]
    assert not (tmp_path / "model.partial").exists()


def test_a_second_builder_waits_for_the_first_and_takes_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    building, go_on = threading.Event(), threading.Event()

    def slow(folder: Path) -> None:
        building.set()
        assert go_on.wait(20)
        _write(folder)

    def never(_: Path) -> None:
        raise AssertionError("built twice")

    first = threading.Thread(target=build_once, args=(tmp_path / "model", slow))
    first.start()
    assert building.wait(20)
    with monkeypatch.context() as patch:
        patch.setattr(model_cache, "_TIMEOUT_S", 0.3)
        with pytest.raises(ModelCacheError, match=r"waited 0\.3 s for another process that builds .*model"):
            build_once(tmp_path / "model", never)
    threading.Timer(0.1, go_on.set).start()
    assert build_once(tmp_path / "model", never).joinpath("weights").exists()
    first.join(20)


def test_a_cache_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(ModelCacheError, match="cannot be written"):
        build_once(tmp_path / "cache" / "model", _write)
