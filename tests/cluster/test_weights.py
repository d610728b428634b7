"""The folder in memory through which weights reach the engines."""

import os
import subprocess
from pathlib import Path

from milepost.cluster.weights import WeightFolder


def test_what_a_killed_driver_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    others = [tmp_path / f"milepost-run-{os.getppid()}", tmp_path / "milepost-of-somebody", tmp_path / "else-1"]
    for folder in (left := tmp_path / f"milepost-run-{ended.pid}", *others):
        folder.mkdir()
    WeightFolder("run", root=tmp_path)
    assert not left.exists()
    assert all(folder.exists() for folder in others)


def test_only_the_published_version_stays_until_the_folder_is_closed(tmp_path: Path) -> None:
    weights = WeightFolder("run", root=tmp_path)
    assert weights.path.stat().st_mode & 0o777 == 0o700
    for version in (1, 2):
        weights.file(version).write_bytes(b"weights")
    weights.keep_only(2)
    assert [file.name for file in weights.path.iterdir()] == ["v2.safetensors"]
    weights.close()
    assert list(tmp_path.iterdir()) == []
