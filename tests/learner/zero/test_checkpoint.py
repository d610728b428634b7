import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from milepost.learner.zero.checkpoint import (
    LATEST,
    MANIFEST,
    CheckpointError,
    Record,
    newest_valid,
    package_versions,
    prepare,
    prune,
    publish,
    tag_of,
    verify,
)

ROOT = Path(__file__).parents[3]


def record(iteration: int) -> Record:
    return Record(
        run_id="run",
        iteration=iteration,
        policy_version=iteration,
        config_hash="c0ffee",
        versions={"torch": "2"},
        consumed={f"g{iteration}": "trained"},
    )


def write(root: Path, iteration: int) -> Path:
    staged = prepare(root, tag_of(iteration), writer=1)
    (staged / "engine").mkdir()
    for rank in range(2):
        (staged / "engine" / f"rank{rank}.pt").write_bytes(bytes([iteration, rank]) * 3000)
    (staged / "driver.json").write_text("{}")
    return publish(staged, tag_of(iteration), record(iteration))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for iteration in (1, 2, 3):
        write(tmp_path / "checkpoints", iteration)
    return tmp_path / "checkpoints"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_what_was_published_is_found_with_its_record(root: Path):
    found = newest_valid(root)
    assert found is not None
    assert found.path == root / "step-00000003"
    assert found.manifest.record == record(3)
    assert set(found.manifest.files) == {"driver.json", "engine/rank0.pt", "engine/rank1.pt"}
    assert found.problems == ()
    assert found.path.stat().st_mode & 0o777 == 0o700
    assert root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda c: (c / "engine/rank1.pt").write_bytes(b"x"), "engine/rank1.pt has 1 bytes, the manifest says 6000"),
        (lambda c: (c / "engine/rank1.pt").write_bytes(bytes(6000)), "engine/rank1.pt has another SHA-256"),
        (lambda c: flip(c / "engine/rank0.pt"), "engine/rank0.pt has another SHA-256"),
        (lambda c: (c / "engine/rank0.pt").unlink(), "engine/rank0.pt is missing"),
        (lambda c: (c / "planted.pt").write_bytes(pickle.dumps(1)), "planted.pt is not in the manifest"),
        (lambda c: (c / "engine" / MANIFEST).write_bytes(b"{}"), "engine/MANIFEST.json is not in the manifest"),
        (lambda c: (c / "engine/link").symlink_to("/etc/hostname"), "engine/link is a link"),
        (lambda c: (c / MANIFEST).unlink(), "MANIFEST.json is missing"),
        (lambda c: (c / MANIFEST).write_bytes(b"{"), "MANIFEST.json is not readable"),
        (
            lambda c: (c / MANIFEST).write_text(
                (c / MANIFEST).read_text().replace('"policy_version": 3', '"policy_version": 9')
            ),
            "MANIFEST.json was edited",
        ),
        (
            lambda c: (c / MANIFEST).write_text((c / MANIFEST).read_text().replace('"schema": 1', '"schema": 2')),
            "has schema 2",
        ),
    ],
)
def test_damage_is_named_and_the_checkpoint_before_is_taken(damage: Callable[[Path], object], reason: str, root: Path):
    damage(root / "step-00000003")
    found = newest_valid(root)
    assert found is not None
    assert found.path == root / "step-00000002"
    assert len(found.problems) == 1
    assert found.problems[0].startswith("step-00000003: ")
    assert reason in found.problems[0]


@pytest.mark.parametrize(
    ("content", "taken", "reason"),
    [
        ("", 3, "latest holds '', not a checkpoint's name"),
        ("step-00000009", 3, "step-00000009: no such folder"),
        ("../outside", 3, "latest holds '../outside', not"),
        ("..", 3, "latest holds '..', not"),
        ("/etc", 3, "latest holds '/etc', not"),
        ("step-00000001\n", 1, None),
    ],
)
def test_a_pointer_that_leads_nowhere_or_out_is_named_and_not_followed(
    content: str, taken: int, reason: str | None, root: Path
):
    write(root.parent / "outside", 8)
    (root / LATEST).write_text(content)
    found = newest_valid(root)
    assert found is not None
    assert found.path == root / tag_of(taken)
    assert [p.startswith(reason or "") for p in found.problems] == [True] * (reason is not None)


def test_a_pointer_to_a_linked_folder_or_a_linked_pointer_is_not_followed(root: Path):
    outside = write(root.parent / "outside", 8)
    (root / "step-00000008").symlink_to(outside)
    (root / LATEST).write_text("step-00000008")
    found = newest_valid(root)
    assert found is not None
    assert (found.path.name, "leads out of" in found.problems[0]) == ("step-00000003", True)
    (root / LATEST).unlink()
    (root / LATEST).symlink_to(root.parent / "nowhere")
    found = newest_valid(root)
    assert found is not None
    assert found.problems == ("latest is a link, not a file",)


def test_several_damaged_checkpoints_are_all_named_and_none_valid_is_an_error(root: Path):
    for tag in ("step-00000002", "step-00000003"):
        flip(root / tag / "engine/rank0.pt")
    found = newest_valid(root)
    assert found is not None
    assert (found.path.name, len(found.problems)) == ("step-00000001", 2)
    flip(root / "step-00000001" / "driver.json")
    with pytest.raises(CheckpointError, match=r"no valid checkpoint in .*step-00000003.*step-00000002.*step-00000001"):
        newest_valid(root)


def test_no_checkpoint_at_all_is_none_but_a_lone_pointer_is_an_error(tmp_path: Path):
    assert newest_valid(tmp_path / "absent") is None
    assert newest_valid(tmp_path) is None
    (tmp_path / LATEST).write_text("step-00000001")
    with pytest.raises(CheckpointError, match="no such folder"):
        newest_valid(tmp_path)


def test_a_staging_folder_is_never_taken_for_a_checkpoint(root: Path):
    staged = prepare(root, tag_of(4), writer=7)
    (staged / "half.pt").write_bytes(b"half")
    found = newest_valid(root)
    assert found is not None
    assert found.path.name == "step-00000003"
    assert prune(root, keep=3) == []
    assert not staged.exists()


def test_a_tag_is_replaced_when_a_resumed_run_gets_there_again(root: Path):
    (root / LATEST).write_text("step-00000002")
    (root / "step-00000003" / "driver.json").write_text("old")
    write(root, 3)
    found = newest_valid(root)
    assert found is not None
    assert (found.path.name, found.problems) == ("step-00000003", ())


def test_pruning_keeps_the_newest_and_the_one_the_pointer_names(root: Path):
    write(root, 4)
    (root / LATEST).write_text("step-00000001")
    assert prune(root, keep=2) == ["step-00000002"]
    assert sorted(p.name for p in root.iterdir()) == [LATEST, "step-00000001", "step-00000003", "step-00000004"]


@pytest.mark.parametrize("tag", ["../x", ".hidden", "", "a/b", "latest", "x" * 200])
def test_a_tag_that_is_not_a_plain_name_is_refused(tag: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match="no checkpoint name"):
        prepare(tmp_path, tag, writer=1)


def test_an_empty_or_foreign_folder_is_not_published(root: Path):
    with pytest.raises(CheckpointError, match="is empty"):
        publish(prepare(root, "step-00000005", writer=1), "step-00000005", record(5))
    with pytest.raises(CheckpointError, match="no staging folder"):
        publish(root / "step-00000001", "step-00000005", record(5))


def test_a_write_that_fails_leaves_the_latest_checkpoint(root: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(root, 4)
    monkeypatch.undo()
    found = newest_valid(root)
    assert found is not None
    assert found.path.name == "step-00000003"


WRITER = """
import sys
from itertools import count
from pathlib import Path
sys.path[:0] = [{tests!r}]
from test_checkpoint import write
for iteration in count(4):
    write(Path({root!r}), iteration)
    print(iteration, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_valid_checkpoint(root: Path):
    reached = 3
    for delay_s in (0.0, 0.002, 0.005, 0.009):
        script = WRITER.format(tests=str(Path(__file__).parent), root=str(root))
        child = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "4\n"
        time.sleep(delay_s)
        child.send_signal(signal.SIGKILL)
        rest, _ = child.communicate(timeout=30)
        assert child.returncode == -signal.SIGKILL
        reached = max([4, *map(int, rest.split())])
        found = newest_valid(root)
        assert found is not None
        assert found.problems == ()
        assert found.manifest.record.iteration in (reached, reached + 1)
        assert verify(found.path) == found.manifest
        for tag in prune(root, keep=1):
            assert tag != found.path.name


def test_package_versions_name_what_wrote_the_shards():
    assert {"torch", "deepspeed", "transformers"} <= package_versions().keys()


def test_a_folder_called_latest_is_passed_over_and_put_aside(root: Path) -> None:
    (root / LATEST).unlink()
    (root / "step-00000001").rename(root / LATEST)  # as somebody restores a copy
    found = newest_valid(root)
    assert found is not None
    assert found.path.name == "step-00000003"
    assert found.problems == ("latest is a folder, not a file",)
    write(root, 4)
    assert prune(root, keep=1) == ["step-00000003", "step-00000002"]
    assert (root / LATEST).read_text() == "step-00000004"
    assert (root / ".latest-folder" / MANIFEST).is_file()
