"""Pairs of files: rolled over by size and age, bounded, whole or not there."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from milepost.cluster.trajectories import parts
from milepost.cluster.trajectories.parts import Parts, parts_of
from milepost.cluster.trajectories.recording import of_trajectory
from milepost.cluster.trajectories.table import EPISODES, TURNS, Judged, Row, episode_row, schema, turn_row
from tests.cluster.replay.buffer_rig import trajectory


def add(into: Parts, *, text: str = "") -> None:
    recording = of_trajectory(trajectory("g", into.next_number))
    turns: list[Row] = [turn_row(into.next_number, 0, recording.turns[0], (text, "up"), None)]
    into.add(episode_row(into.next_number, recording, Judged(fate="pending")), turns, num_tokens=4)


def numbers(folder: Path) -> list[int]:
    return [n for _, path, _ in parts_of(folder) for n in pq.read_table(path)["episode"].to_pylist()]


def noise(n: int) -> str:
    """Text that does not shrink."""
    return "".join(chr(0x4E00 + (n * 7919 + k * k * 104729) % 20000) for k in range(20_000))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every episode is written when it comes, and a pair is full with the first one."""
    monkeypatch.setattr(parts, "_ROW_GROUP_BYTES", 1)


@pytest.mark.usefixtures("small")
def test_a_full_pair_is_finished_and_the_oldest_are_deleted_beyond_the_bound(tmp_path: Path) -> None:
    writing = Parts(tmp_path, max_bytes=200_000)
    for n in range(12):
        add(writing, text=noise(n))
    kept = numbers(tmp_path)
    assert kept == list(range(kept[0], 12)), "the newest stay, without a gap"
    assert 0 < kept[0] < 11
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 200_000
    assert len(list(tmp_path.glob("turns-*"))) == len(parts_of(tmp_path)) > 1


@pytest.mark.usefixtures("small")
def test_one_pair_larger_than_the_bound_stays_until_there_is_a_newer_one(tmp_path: Path) -> None:
    writing = Parts(tmp_path, max_bytes=10)
    add(writing, text=noise(0))
    assert numbers(tmp_path) == [0]
    add(writing, text=noise(1))
    assert numbers(tmp_path) == [1]


def test_a_pair_becomes_readable_when_it_is_finished_and_the_next_writer_counts_on(tmp_path: Path) -> None:
    writing = Parts(tmp_path, max_bytes=1 << 30)
    assert writing.wait_s is None
    add(writing)
    add(writing)
    assert parts_of(tmp_path) == []
    assert 0 < (writing.wait_s or 0) <= 30
    writing.finish()
    assert numbers(tmp_path) == [0, 1]
    after = Parts(tmp_path, max_bytes=1 << 30)
    add(after)
    after.finish()
    assert numbers(tmp_path) == [0, 1, 2]
    assert [path.name for _, path, _ in parts_of(tmp_path)] == [
        "episodes-000000000000.parquet", "episodes-000000000002.parquet",
    ]  # fmt: skip


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    whole = Parts(tmp_path, max_bytes=1 << 30)
    add(whole)
    whole.finish()
    killed = Parts(tmp_path, max_bytes=1 << 30)
    add(killed)  # its files stay open and unnamed
    (tmp_path / "turns-000000000007.parquet").write_bytes(b"its episodes never got their name")
    assert len(list(tmp_path.iterdir())) == 5
    Parts(tmp_path, max_bytes=1 << 30)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "episodes-000000000000.parquet", "turns-000000000000.parquet",
    ]  # fmt: skip


def test_other_programs_read_the_folder_as_one_table_each(tmp_path: Path) -> None:
    writing = Parts(tmp_path, max_bytes=1 << 30)
    for _ in range(2):
        add(writing)
        writing.finish()
    for name, columns in (("episodes", EPISODES), ("turns", TURNS)):
        table = pq.ParquetDataset(sorted(tmp_path.glob(f"{name}-*.parquet"))).read()
        assert table.schema.equals(schema(columns))
        assert table["episode"].to_pylist() == [0, 1]


def test_the_documents_show_every_column() -> None:
    text = (Path(__file__).parents[3] / "docs" / "trajectories.md").read_text()
    for columns in (EPISODES, TURNS):
        for name, kind, meaning in columns:
            told = str(kind).replace("item: ", "").replace("timestamp[ms, tz=UTC]", "timestamp")
            assert f"| `{name}` | {told} | {meaning} |" in text
