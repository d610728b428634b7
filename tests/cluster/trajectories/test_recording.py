"""A recording keeps what each turn added, and gives back every prompt bit by bit."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.actors.resources import OpenTurn
from milepost.cluster.trajectories import recording
from milepost.cluster.trajectories.recording import (
    EVALUATION,
    Recording,
    RecordingQueue,
    Told,
    of_failure,
    of_trajectory,
)
from milepost.envs.types import Trajectory, Turn, VersionSpan
from tests.actors.episode_rig import completion
from tests.cluster.replay.buffer_rig import failure, task, trajectory
from tests.cluster.trajectories.recorded import prompts

IDS = st.lists(st.integers(0, 3), min_size=1, max_size=4)
"""Few different ids, so that a prompt that was laid out anew often begins like the one before."""
STEPS = st.lists(st.tuples(IDS, st.booleans(), IDS), min_size=1, max_size=8)


def turn(prompt_ids: list[int], response_ids: list[int], **facts: Any) -> Turn:
    values: dict[str, Any] = {"anchor": "a", "next_anchor": "a", "action": "x", "reward": 0.0}
    return Turn(
        prompt_ids=prompt_ids,
        response_ids=response_ids,
        logprobs=[-0.5] * len(response_ids),
        versions=[VersionSpan(version=0, start=0, end=len(response_ids))],
        **(values | facts),
    )


def episode(turns: list[Turn]) -> Trajectory:
    return Trajectory(task=task(), group_id="g", index=0, turns=turns, outcome="failure")


@given(STEPS)
def test_every_prompt_comes_back_however_the_conversation_grew(steps: list[tuple[list[int], bool, list[int]]]) -> None:
    turns: list[Turn] = []
    for ids, appends, response in steps:
        before = turns[-1].prompt_ids + turns[-1].response_ids if turns and appends else []
        turns.append(turn(before + ids, response))
    recorded = of_trajectory(episode(turns)).turns
    assert list(prompts(recorded)) == [each.prompt_ids for each in turns]
    assert [each.response_ids for each in recorded] == [each.response_ids for each in turns]
    kept = sum(len(each.prompt_ids) for each in recorded)
    assert kept <= sum(len(ids) for ids, _, _ in steps), "what was appended to is not kept again"


@given(STEPS, IDS)
def test_the_turn_in_which_an_episode_broke_off_comes_back_too(
    steps: list[tuple[list[int], bool, list[int]]], last: list[int]
) -> None:
    turns = [turn(ids, response) for ids, _, response in steps]
    whole = turns[-1].prompt_ids + turns[-1].response_ids + last
    for answer in (None, completion([7, 8])):
        recorded = of_failure(failure("g", 0), turns, OpenTurn(whole, answer))
        assert list(prompts(recorded.turns))[-1] == whole
        assert recorded.turns[-1].response_ids == ([7, 8] if answer else [])
        assert recorded.turns[-1].prompt_ids == last


def test_a_recording_travels_as_bytes() -> None:
    recorded = of_trajectory(episode([turn([1], [2], tool={"name": "sql", "ok": True}, progress=0.5)]))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(recorded), type=Recording) == recorded


def test_a_queue_tells_each_episode_once_and_says_which_ones_the_learner_will_judge() -> None:
    queue = RecordingQueue()
    queue.ended(trajectory("g", 0), [], None)
    queue.ended(trajectory(EVALUATION, 1), [], None)
    queue.ended(failure("g", 2), [], None)
    queue.refused("g", 0, "late", "its group was over")
    told = queue.take().told
    assert [(one.group_id, one.index, one.what) for one in told] == [
        ("g", 0, "open"), (EVALUATION, 1, "ended"), ("g", 2, "ended"), ("g", 0, "late"),
    ]  # fmt: skip
    assert told[-1] == Told("g", 0, "late", b"", "its group was over")
    assert queue.take().told == []


def test_a_queue_that_nobody_empties_loses_and_counts_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = RecordingQueue()
    queue.ended(trajectory("g", 0), [], None)
    monkeypatch.setattr(recording, "_MAX_BYTES", 2 * len(queue.take().told[0].payload))
    for index in range(5):
        queue.ended(trajectory("g", index), [], None)
    batch = queue.take()
    assert ([told.index for told in batch.told], batch.lost) == ([0, 1], 3)
    queue.ended(trajectory("g", 5), [], None)
    assert ([told.index for told in queue.take().told], queue.take().lost) == ([5], 0)


def test_an_episode_that_no_wire_takes_is_lost_and_ends_nothing() -> None:
    queue = RecordingQueue()
    queue.ended(episode([turn([1], [2], anchor="\ud800", next_anchor="\ud800")]), [], None)
    assert queue.take().lost == 1
