import os
import tempfile
from pathlib import Path

import pytest

from milepost.cluster.base.surroundings import make_usable


@pytest.fixture(autouse=True)
def usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_folders_that_serve_are_kept(tmp_path: Path) -> None:
    assert list(make_usable()) == []
    assert os.environ["TMPDIR"] == "/tmp"
    assert os.environ["HOME"] == str(tmp_path)


def test_a_folder_for_temporary_files_whose_name_leaves_no_room_for_sockets_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("a" * 100)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    assert list(make_usable()) == ["TMPDIR is longer than the 39 bytes that names of sockets leave for it: using /tmp"]
    assert os.environ["TMPDIR"] == tempfile.gettempdir() == "/tmp"


@pytest.mark.parametrize("home", ["/proc/nobody", "/etc/passwd", "/dev/null/home"])
def test_a_home_folder_that_cannot_be_written_is_replaced(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    (said,) = make_usable()
    assert said.startswith(f"the home folder {home} cannot be written: using /tmp/milepost-home-")
    assert Path(os.environ["HOME"]).stat().st_mode & 0o777 == 0o700
