"""Every episode that was played is in the files with what became of it, and its text is what the engine saw."""

from pathlib import Path
from typing import Any

import pytest

from milepost.actors.engine import Completion, EngineError
from milepost.cluster.trajectories.recorder import Recorder
from milepost.cluster.trajectories.recording import EVALUATION, Batch
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Failure, Trajectory
from tests.actors.episode_rig import BROKEN, HERE, task
from tests.cluster.trajectories.recorded import Played, closing, recorder, rows, trained, turns_of, unjudged


@pytest.fixture
def played(dialogue: Dialogue) -> Played:
    return Played(dialogue)


def same_text(played: Played, folder: Path, row: dict[str, Any]) -> None:
    """The episode's texts, put together, are what the ids of the engine's own requests decode to."""
    tokenizer = played.dialogue._tokenizer
    asked = played.seen[row["group_id"], row["index"]]
    turns = turns_of(folder, row["episode"])
    assert len(turns) == len(asked) == row["num_turns"]
    text, ids = "", []
    for turn, (prompt_ids, response_ids) in zip(turns, asked, strict=True):
        text += turn["prompt"]
        ids += turn["prompt_ids"]
        assert ids == prompt_ids
        assert text == tokenizer.decode(prompt_ids, skip_special_tokens=False)
        text += turn["response"]
        ids += turn["response_ids"]
        assert turn["response_ids"] == response_ids
        assert text == tokenizer.decode(prompt_ids + response_ids, skip_special_tokens=False)


def test_the_text_of_every_outcome_and_fate_is_what_the_engine_saw(
    played: Played, tmp_path: Path, tiny_policy: Path
) -> None:
    folder = tmp_path / "trajectories"
    kept, dropped = played.group(task(), "g1"), played.group(task(), "g2")
    old = played.group(task(), "g3", ("up", "up"))
    waiting = played.group(task(), "g4")
    results = [
        played.play(task(), EVALUATION, 0),
        played.play(task(), EVALUATION, 1, "down", max_turns=2),
        played.play(task(f"{BROKEN}:RaisesInStep"), "g5", 0),
        played.play(task(), "g6", 0, reward=lambda *_: 1 / 0),
    ]
    assert [t.outcome for t in kept.trajectories] == ["success", "truncated"]
    with closing(record := recorder(folder, tiny_policy)):
        record.add(played.told())
        record.judge([trained(kept), unjudged(dropped, "filtered", "low_score"), unjudged(old, "stale", "too old")])
    found = {(row["group_id"], row["index"]): row for row in rows(folder, "episodes")}
    assert len(found) == len(rows(folder, "episodes")) == 12
    for row in found.values():
        same_text(played, folder, row)
    fates = {"g1": "trained", "g2": "filtered", "g3": "stale", "g4": "pending", "g5": "failed", "g6": "failed"}
    assert {row["fate"] for (group, _), row in found.items() if group == EVALUATION} == {"evaluation"}
    assert {group: row["fate"] for (group, _), row in found.items() if group != EVALUATION} == fates
    assert found["g2", 0]["reason"] == "low_score"
    assert found["g5", 0]["reason"] == "env: RuntimeError: broken in step"
    assert found["g6", 0]["reason"] == (
        "reward: RewardError: reward of trajectory g6/0: ZeroDivisionError: division by zero"
    )
    assert [row["outcome"] for row in (found["g1", 0], found["g1", 1], found["g5", 0])] == [
        "success", "truncated", None,
    ]  # fmt: skip
    assert [type(result) for result in results] == [Trajectory, Trajectory, Failure, Failure]
    assert record.problem == ""
    assert waiting.group_id == "g4"


def test_a_trained_episode_has_credit_and_advantage_of_every_turn(
    played: Played, tmp_path: Path, tiny_policy: Path
) -> None:
    group = played.group(task(), "g1")
    judged = trained(group, version=7)
    with closing(record := recorder(tmp_path, tiny_policy)):
        record.judge([judged])  # the worker has not told of it yet
        record.add(played.told())
    won, lost = rows(tmp_path, "episodes")
    assert (won["outcome"], won["learner_version"], won["strategy"], won["reason"]) == (
        "success",
        7,
        "crbc",
        "selected",
    )
    assert (won["oldest_version"], won["newest_version"]) == (3, 3)
    assert won["trajectory_credit"] > 0 > lost["trajectory_credit"]
    credit = judged.credits[0]
    assert credit is not None
    turns = turns_of(tmp_path, won["episode"])
    assert [turn["credit"] for turn in turns] == credit.turns
    assert [turn["advantage"] for turn in turns] == credit.advantages
    assert all(turn["trained"] for turn in turns)
    first = turns[0]
    assert (first["anchor"], first["next_anchor"], first["action"], first["reward"]) == ("0", "1", "up", 0.0)
    assert first["progress"] == pytest.approx(1 / 3)
    assert first["versions"] == [{"version": 3, "start": 0, "end": len(first["response_ids"])}]
    assert first["logprobs"] == [-0.5] * len(first["response_ids"])


def test_a_judged_episode_without_update_is_not_marked_as_trained(
    played: Played, tmp_path: Path, tiny_policy: Path
) -> None:
    with closing(record := recorder(tmp_path, tiny_policy)):
        record.judge([unjudged(played.group(task(), "g1"), "stale", "too old")])
    assert not any(turn["trained"] for turn in rows(tmp_path, "turns"))
    assert {turn["credit"] for turn in rows(tmp_path, "turns")} == {None}


class Silent:
    """Answers once, and then no more."""

    def __init__(self, dialogue: Dialogue) -> None:
        self.ids, self.left = dialogue.response("up"), 1

    async def generate(self, prompt_ids: list[int]) -> Completion:
        from tests.actors.episode_rig import completion

        self.left -= 1
        if self.left < 0:
            raise EngineError(f"no answer to {len(prompt_ids)} tokens")
        return completion(self.ids)


def test_a_turn_in_which_the_engine_did_not_answer_shows_what_it_was_asked(
    played: Played, tmp_path: Path, tiny_policy: Path
) -> None:
    played.play(task(), "g1", 0, engine=Silent(played.dialogue))
    with closing(record := recorder(tmp_path, tiny_policy)):
        record.add(played.told())
    first, second = rows(tmp_path, "turns")
    assert "up" in first["response"]
    assert "1" in second["prompt"]
    assert (second["response"], second["reward"], second["response_ids"]) == ("", None, [])


def test_a_lone_survivor_is_filtered_once_the_others_of_its_group_failed(
    played: Played, tmp_path: Path, tiny_policy: Path
) -> None:
    played.play(task(), "g1", 0)
    played.play(task(f"{BROKEN}:RaisesInStep"), "g1", 1)
    played.play(task(f"{BROKEN}:RaisesInReset"), "g1", 2)
    with closing(record := recorder(tmp_path, tiny_policy, group_size=3)):
        record.add(played.told())
    found = {row["index"]: row for row in rows(tmp_path, "episodes")}
    assert [found[index]["fate"] for index in range(3)] == ["filtered", "failed", "failed"]
    assert found[0]["reason"] == "2 of 3 episodes of its group failed: nothing to compare"
    assert found[2]["num_turns"] == 0


def test_an_episode_that_the_buffer_did_not_take_says_why(played: Played, tmp_path: Path, tiny_policy: Path) -> None:
    played.group(task(), "g1")
    played.queue.refused("g1", 0, "late", "its group was over")
    played.queue.refused("g1", 1, "failed", "env: WireError: oversize")
    with closing(record := recorder(tmp_path, tiny_policy)):
        record.add(played.told())
    found = [(row["index"], row["fate"], row["reason"]) for row in rows(tmp_path, "episodes")]
    assert found == [(0, "late", "its group was over"), (1, "failed", "env: WireError: oversize")]


def test_a_rollback_makes_stale_what_newer_weights_sampled(played: Played, tmp_path: Path, tiny_policy: Path) -> None:
    played.group(task(), "g1")  # under version 3
    with closing(record := recorder(tmp_path, tiny_policy)):
        record.add(played.told())
        record.undo(3)
        record.undo(2)
    assert {row["fate"] for row in rows(tmp_path, "episodes")} == {"stale"}


def test_a_dead_letter_is_told_by_its_group(played: Played, tmp_path: Path, tiny_policy: Path) -> None:
    played.group(task(), "g1")
    with closing(record := recorder(tmp_path, tiny_policy)):
        record.add(played.told())
        record.end("g1", "dead_letter", "malformed: truncated")
    assert {(row["fate"], row["reason"]) for row in rows(tmp_path, "episodes")} == {
        ("dead_letter", "malformed: truncated")
    }


def test_a_group_that_is_trained_again_after_a_rollback_has_a_later_row(
    played: Played, tmp_path: Path, tiny_policy: Path
) -> None:
    group = played.group(task(), "g1")
    with closing(record := recorder(tmp_path, tiny_policy)):
        record.judge([trained(group, version=4)])
        record.judge([trained(group, version=2)])
        record.add(played.told())
    assert [row["learner_version"] for row in rows(tmp_path, "episodes")] == [4, 4, 2, 2]


def test_a_full_disk_stops_the_recording_and_nobody_else(
    played: Played, tmp_path: Path, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from milepost.cluster.trajectories import parts

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "trajectories"
    monkeypatch.setattr(parts.pq.ParquetWriter, "write_table", full)
    with closing(record := recorder(folder, tiny_policy)):
        record.add(played_of(played, "g1"))
    assert record.problem == (
        f"trajectories are not recorded any more (OSError: No space left on device, in {folder}); the run goes on"
    )
    assert list(folder.iterdir()) == [], "nothing half-written stays"
    record.add(played_of(played, "g2"))  # it is heard, and goes nowhere


def test_a_folder_that_cannot_be_made_stops_the_recording_alone(
    played: Played, tmp_path: Path, tiny_policy: Path
) -> None:
    (tmp_path / "trajectories").write_text("a file")
    with closing(record := recorder(tmp_path / "trajectories", tiny_policy)):
        record.add(played_of(played, "g1"))
    assert "not recorded any more (FileExistsError: File exists" in record.problem


def test_what_there_is_no_room_for_is_dropped_and_counted(
    played: Played, tmp_path: Path, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from milepost.cluster.trajectories import recorder as module

    monkeypatch.setattr(module, "_WAITING_BYTES", 100)
    with closing(record := recorder(tmp_path, tiny_policy)):
        record.add(played_of(played, "g1"))
        record.add(Batch([], lost=5))
    assert record.lost == 2 + 5
    assert rows(tmp_path, "episodes") == []


def test_more_than_there_is_room_to_hold_is_written_before_its_verdict(
    played: Played, tmp_path: Path, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from milepost.cluster.trajectories import recorder as module

    monkeypatch.setattr(module, "_HELD_BYTES", 100)
    group = played.group(task(), "g1")
    with closing(record := recorder(tmp_path, tiny_policy)):
        record.add(played.told())
        record.judge([trained(group)])
    assert [row["fate"] for row in rows(tmp_path, "episodes")] == ["pending"] * 2 + ["trained"] * 2


def test_a_value_that_no_table_takes_is_the_recordings_problem_alone(
    played: Played, tmp_path: Path, tiny_policy: Path
) -> None:
    played.play(task(f"{HERE}:LoneSurrogate", where="reset"), "g1", 0)
    with closing(record := recorder(tmp_path, tiny_policy)):
        record.add(played.told())
    assert [row["fate"] for row in rows(tmp_path, "episodes")] == ["failed"]
    assert record.problem == ""


def played_of(played: Played, group_id: str) -> Batch:
    played.group(task(), group_id)
    return played.told()


def test_closing_twice_and_closing_unused_leave_no_file(tmp_path: Path, tiny_policy: Path) -> None:
    unused: Recorder = recorder(tmp_path / "never", tiny_policy)
    unused.close()
    unused.close()
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("is_told_first", [True, False])
def test_an_episode_without_which_its_group_was_judged_is_late(
    played: Played, tmp_path: Path, tiny_policy: Path, is_told_first: bool
) -> None:
    group = played.group(task(), "g1", ("up", "down"))
    played.play(task(), "g1", 2)
    played.play(task(f"{BROKEN}:RaisesInStep"), "g1", 3)
    with closing(record := recorder(tmp_path, tiny_policy, group_size=4)):
        if is_told_first:
            record.add(played.told())
        record.judge([trained(group)])
        record.add(played.told())
    fates = {row["index"]: row["fate"] for row in rows(tmp_path, "episodes")}
    assert fates == {0: "trained", 1: "trained", 2: "late", 3: "failed"}
    assert len(rows(tmp_path, "episodes")) == 4
