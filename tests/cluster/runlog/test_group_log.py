from pathlib import Path

import pytest

from milepost.cluster.runlog import group_log as group_log_module
from milepost.cluster.runlog.group_log import GroupLog
from milepost.envs.types import Group, Task, Trajectory, Turn, VersionSpan
from milepost.learner.credit.assignment import INVALID, from_group
from milepost.learner.credit.interchange import Numbered, read

TASK = Task(env="pkg.lake:Lake", seed=3, split="train")


def group(name: str) -> Group:
    turns = [
        Turn(
            prompt_ids=[1],
            response_ids=[5, 6],
            logprobs=[-0.1, -0.2],
            versions=[VersionSpan(version=0, start=0, end=2)],
            anchor="A",
            next_anchor="A",
            action=action,
            reward=0.5,
            progress=0.25,
        )
        for action in ("up", None)
    ]
    trajectory = Trajectory(task=TASK, group_id=name, index=0, turns=turns, outcome="failure")
    return Group(group_id=name, task=TASK, trajectories=[trajectory])


def names(path: Path) -> list[str]:
    found = list(read(path))
    assert all(isinstance(one, Numbered) for one in found)
    return [one.group.task_id for one in found]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "groups.jsonl"


def test_a_recorded_group_is_the_one_that_credit_was_computed_from(path: Path) -> None:
    GroupLog(path).add([group("g1"), group("g2")])
    first, second = read(path)
    assert first.group == from_group(group("g1"))
    assert [turn.action for turn in second.group.trajectories[0].turns] == ["up", INVALID]


def test_tokens_are_not_recorded(path: Path) -> None:
    GroupLog(path).add([group("g1")])
    assert b"ids" not in path.read_bytes()


def test_a_resumed_run_goes_on_after_the_last_whole_line(path: Path) -> None:
    GroupLog(path).add([group("g1")])
    path.write_bytes(path.read_bytes() + b'{"task_id": "torn')
    GroupLog(path).add([group("g2")])
    assert names(path) == ["g1", "g2"]


def test_a_full_file_makes_room_and_the_newest_groups_stay(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    GroupLog(path).add([group("g1")])
    monkeypatch.setattr(group_log_module, "_MAX_BYTES", 2 * path.stat().st_size)
    group_log = GroupLog(path)
    for name in ("g2", "g3", "g4", "g5"):
        group_log.add([group(name)])
    assert names(path) == ["g5"]
    assert names(path.with_name("groups.1.jsonl")) == ["g3", "g4"]


def test_groups_larger_than_the_file_may_be_are_recorded_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_log_module, "_MAX_BYTES", 10)
    group_log = GroupLog(path)
    group_log.add([group("g1"), group("g2")])
    assert names(path) == ["g1", "g2"]
