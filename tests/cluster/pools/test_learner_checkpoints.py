"""A checkpoint of the pool on disks that are full, break or hang, with ranks that write as they are told."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from milepost.cluster.base.exits import DependencyLost
from milepost.cluster.base.restarts import RestartConfig
from milepost.cluster.pools import learners
from milepost.cluster.pools.learners import LearnerPool
from milepost.learner.zero import checkpoint
from tests.cluster.pools.hosts.pool_rig import HostPlace

Write = Callable[[Path], None]


def good(staged: Path) -> None:
    (staged / "weights").write_bytes(b"1" * 1000)


def full(staged: Path) -> None:
    good(staged)
    raise OSError(errno.ENOSPC, "No space left on device", str(staged / "weights"))


def full_for_safetensors(staged: Path) -> None:
    good(staged)
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def pool_with(root: Path, write: Write) -> LearnerPool:
    async def save(staged: Path) -> None:
        write(staged)

    spec = SimpleNamespace(
        checkpoints=root, run_id="r", config_hash="c", keep_checkpoints=3, restarts=RestartConfig(), transfer="file"
    )
    pool = LearnerPool(spec, None, HostPlace())
    pool._handles = [SimpleNamespace(save=SimpleNamespace(remote=save))]
    return pool


def save(root: Path, write: Write, iteration: int) -> Path:
    return asyncio.run(pool_with(root, write).save(iteration=iteration, version=iteration, consumed={}))


@pytest.mark.parametrize("write", [full, full_for_safetensors])
def test_a_disk_that_fills_costs_one_line_and_leaves_nothing_of_the_attempt(tmp_path: Path, write: Write) -> None:
    save(tmp_path, good, 1)
    for _ in range(3):
        with pytest.raises(DependencyLost, match=r"step-00000002 could not be written.*No space left.*MiB are free"):
            save(tmp_path, write, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000001", "latest"}
    assert checkpoint.newest_valid(tmp_path).path.name == "step-00000001"


def test_a_disk_that_fills_while_the_checkpoint_is_published_is_told_of_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, good, 1)

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(DependencyLost, match="No space left on device"):
            save(tmp_path, good, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000001", "latest"}


def test_a_disk_that_never_answers_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda _: gate.wait())
    monkeypatch.setattr(learners, "_DISK_S", 0.2)
    try:
        with pytest.raises(DependencyLost, match=r"did not take checkpoint step-00000002 within 0\.2 s"):
            save(tmp_path, good, 2)
    finally:
        gate.set()


def test_what_a_killed_writer_left_does_not_take_the_room_of_the_next_checkpoint(tmp_path: Path) -> None:
    left = checkpoint.prepare(tmp_path, "step-00000001", writer=1)

    def there_is_only_one(staged: Path) -> None:
        assert not left.exists()
        good(staged)

    assert save(tmp_path, there_is_only_one, 2).name == "step-00000002"
