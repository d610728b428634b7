"""The driver's side: what it tells the recorder of an update, and what it says where recording ends."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from milepost.cluster.replay.ready import LeasedGroup, Taken
from milepost.cluster.reporter import Reporter
from milepost.cluster.runlog.group_log import GroupLog
from milepost.cluster.runlog.runs import RunFolder
from milepost.cluster.settings.config import RunConfig
from milepost.cluster.trajectories.config import TrajectoriesConfig
from milepost.cluster.watch import Watch
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Group
from milepost.learner.credit.filter import Verdict
from milepost.learner.episode_credit import EpisodeCredit
from milepost.learner.loop import UpdateReport
from tests.actors.episode_rig import task
from tests.cluster.replay.buffer_rig import encoded
from tests.cluster.trajectories.recorded import Played, closing, recorder, rows, trained

CREDIT = EpisodeCredit(
    trajectory=0.0, turns=[0.0] * 10, steps=[0.0] * 10, compared=[False] * 10, advantages=None, token_advantages=None
)


class View:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def reporter(path: Path, view: View, **settings: int) -> Reporter:
    path.mkdir(parents=True, exist_ok=True)
    config = RunConfig(trajectories=TrajectoriesConfig(**settings))
    system: Any = SimpleNamespace(config=config, folder=RunFolder(path), metrics_ports={})
    shown: Any = view
    metrics: Any = SimpleNamespace(port=0)
    return Reporter(system, shown, metrics, Watch(config, []))


def report(groups: list[Group], verdicts: list[Verdict]) -> UpdateReport:
    credits = [
        trained(group).credits if verdict.keep else [CREDIT] * 2
        for group, verdict in zip(groups, verdicts, strict=True)
    ]
    return UpdateReport(
        version=4, skipped_steps=0, losses=(), verdicts=tuple(verdicts), credits=tuple(map(tuple, credits)), tokens=0,
        num_samples=0, prefix_breaks=0, padding_share=0.0, parity=None, metrics={}, seconds={},
    )  # fmt: skip


def leased(*groups: Group) -> list[LeasedGroup]:
    return [LeasedGroup("1-0", group, encoded(group), 3, 3) for group in groups]


def test_an_update_tells_what_became_of_every_group_that_was_taken(
    tmp_path: Path, dialogue: Dialogue, tiny_policy: Path
) -> None:
    played, view = Played(dialogue), View()
    kept, dropped, old, poison = (played.group(task(), f"g{n}") for n in range(4))
    told = reporter(tmp_path / "run", view)
    told.record_trajectories(tiny_policy)
    told._system.record(played.told())  # type: ignore[misc]
    verdicts = [Verdict(True, "selected", 1.0, 1.0), Verdict(False, "low_score", 0.0, 0.0)]
    taken = Taken(leased(kept, dropped), stale=[old], undecodable=[(poison.group_id, "malformed: truncated")])
    told.consumed(taken, report([kept, dropped], verdicts), GroupLog(tmp_path / "groups.jsonl"))
    told.finished("finished")
    found = {row["group_id"]: row for row in rows(tmp_path / "run" / "trajectories", "episodes")}
    assert {name: (row["fate"], row["reason"]) for name, row in found.items()} == {
        "g0": ("trained", "selected"),
        "g1": ("filtered", "low_score"),
        "g2": ("stale", "sampled by version 3, and the learner was at 4"),
        "g3": ("dead_letter", "malformed: truncated"),
    }
    assert {name: row["learner_version"] for name, row in found.items()} == {"g0": 4, "g1": 4, "g2": 4, "g3": None}
    assert found["g1"]["trajectory_credit"] == 0.0, "also a group that the filter left out has credit"
    assert view.notes == []


def test_an_end_of_recording_is_said_once_and_training_goes_on(
    tmp_path: Path, dialogue: Dialogue, tiny_policy: Path
) -> None:
    played, view = Played(dialogue), View()
    told = reporter(tmp_path / "run", view)
    (tmp_path / "run" / "trajectories").write_text("in the way")
    told.record_trajectories(tiny_policy)
    for number in range(3):
        group = played.group(task(), f"g{number}")
        update = report([group], [Verdict(True, "selected", 1.0, 1.0)])
        told.consumed(Taken(leased(group), [], []), update, GroupLog(tmp_path / "groups.jsonl"))
    told.finished("finished")
    [line] = view.notes
    assert line.startswith("trajectories are not recorded any more (FileExistsError")


def test_what_was_lost_on_the_way_is_told_at_the_end(tmp_path: Path, tiny_policy: Path) -> None:
    view = View()
    told = reporter(tmp_path / "run", view)
    told.record_trajectories(tiny_policy)
    assert told._recorder is not None
    told._recorder._lost = 7
    told.finished("finished")
    assert view.notes == ["7 episodes are not among the recorded trajectories: no room on the way"]


def test_a_run_that_wants_none_records_none(tmp_path: Path, tiny_policy: Path) -> None:
    told = reporter(tmp_path / "run", View(), max_bytes=0)
    told.record_trajectories(tiny_policy)
    told.rolled_back(0)
    told.finished("finished")
    assert not hasattr(told._system, "record")
    assert not (tmp_path / "run" / "trajectories").exists()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.decode()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_is_really_full_ends_the_recording_and_leaves_nothing_half_written(
    full_disk: Path, dialogue: Dialogue, tiny_policy: Path
) -> None:
    played = Played(dialogue)
    folder = full_disk / "trajectories"
    with closing(before := recorder(folder, tiny_policy)):
        before.judge([trained(played.group(task(), "g1"))])
    assert before.problem == ""
    whole = sorted(path.name for path in folder.iterdir())
    (full_disk / "filler").write_bytes(bytes(64 * 1024 - 20_000 - sum(p.stat().st_size for p in folder.iterdir())))
    with closing(record := recorder(folder, tiny_policy)):
        for number in range(40):
            record.judge([trained(played.group(task(), f"g{number}"))])
    assert "No space left on device" in record.problem
    assert sorted(path.name for path in folder.iterdir()) == whole
    assert len(rows(folder, "episodes")) == 2, "what was whole before can be read"
