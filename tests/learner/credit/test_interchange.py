import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.learner.credit import interchange
from milepost.learner.credit.assignment import INVALID, CreditGroup, CreditTrajectory, CreditTurn, PastTransition
from milepost.learner.credit.interchange import Malformed, Numbered, Refused, decode, encode, read

TURN = {"anchor": "A", "action": "x", "next_anchor": "B", "reward": 0.5}


def line(*turns: dict, **changes: object) -> bytes:
    trajectory = {"outcome": "success", "turns": list(turns) or [TURN]}
    return json.dumps({"task_id": "t", "trajectories": [trajectory]} | changes).encode()


def refusal(text: bytes) -> tuple[str, str]:
    with pytest.raises(Refused) as refused:
        decode(text)
    return refused.value.field, refused.value.reason


def test_the_line_of_the_issue_is_a_group() -> None:
    text = (
        '{"task_id": "t", "trajectories": [{"outcome": "failure", "turns": [{"anchor": "A", "action": "x", '
        '"next_anchor": "B", "reward": 0.0, "invalid": false, "num_tokens": 3, "entropy": 0.5, "value": 0.1}]}]}'
    )
    turn = CreditTurn("A", "x", "B", 0.0, invalid=False, num_tokens=3, entropy=0.5, value=0.1)
    assert decode(text.encode()) == CreditGroup("t", (CreditTrajectory("failure", (turn,)),))


def test_every_optional_field_reaches_the_turn() -> None:
    extra = {"num_tokens": 2, "progress": 0.25, "entropy": 0.5, "history_gain": -0.1, "value": 0.2}
    [turn] = decode(line(TURN | extra | {"token_values": [0.2, 0.3]})).trajectories[0].turns
    assert (turn.num_tokens, turn.progress, turn.entropy, turn.history_gain, turn.value) == (2, 0.25, 0.5, -0.1, 0.2)
    assert turn.token_values == (0.2, 0.3)


@pytest.mark.parametrize("action", [{}, {"action": None}, {"action": "what was said"}])
def test_an_invalid_turn_needs_no_action(action: dict) -> None:
    turn = {"anchor": "A", "next_anchor": "A", "reward": 0, "invalid": True} | action
    assert decode(line(turn)).trajectories[0].turns[0].action == INVALID


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        (line(TURN | {"reward": "1"}), "trajectories[0].turns[0].reward", "Expected `float`, got `str`"),
        (line(TURN, TURN | {"anchr": "B"}), "trajectories[0].turns[1]", "unknown field `anchr`"),
        (line({k: v for k, v in TURN.items() if k != "anchor"}), "trajectories[0].turns[0]", "missing required"),
        (line({k: v for k, v in TURN.items() if k != "action"}), "trajectories[0].turns[0]", "action is missing"),
        (line(TURN | {"action": INVALID}), "trajectories[0].turns[0]", "exactly invalid turns"),
        (line(TURN | {"num_tokens": 0}), "trajectories[0].turns[0]", "num_tokens is 0"),
        (line(TURN | {"token_values": [1.0, 2.0]}), "trajectories[0].turns[0]", "2 token_values for 1 tokens"),
        (line(TURN, TURN), "trajectories[0].turns", "turn 0 ends in state 'B' but turn 1 starts in 'A'"),
        (line().replace(b'"success"', b'"won"'), "trajectories[0].outcome", "'won'"),
        (line(trajectories=[]), "trajectories", "length >= 1"),
        (line(task_id=""), "task_id", "length >= 1"),
        (line(gamma=1), "", "unknown field `gamma`"),
        (line().replace(b"0.5", b"NaN"), "", "malformed"),
        (line().replace(b"0.5", b"1e999"), "trajectories[0].turns[0].reward", "out of range"),
        (line()[:-3], "", "truncated"),
        (line().replace(b"A", b"\xff"), "", "not UTF-8"),
        (b"[" * 100_000, "", ""),
        (b"[1]", "", "Expected `object`, got `array`"),
    ],
)
def test_a_line_that_is_no_group_is_refused_with_field_and_reason(text: bytes, field: str, reason: str) -> None:
    where, why = refusal(text)
    assert where == field
    assert reason in why


def test_a_reason_does_not_repeat_a_whole_observation() -> None:
    _, why = refusal(line(TURN, TURN | {"anchor": "x" * 10_000}))
    assert len(why) < 310


TURNS = st.builds(
    CreditTurn,
    anchor=st.just("A"),
    action=st.text(st.characters(exclude_categories=["Cs"])),
    next_anchor=st.just("A"),
    reward=st.floats(-3e11, 3e11),
    invalid=st.just(False),
    num_tokens=st.integers(1, 9),
    progress=st.none() | st.floats(0, 1),
    entropy=st.none() | st.floats(0, 9),
)
INVALID_TURN = CreditTurn("A", INVALID, "A", 0.0, invalid=True, num_tokens=2, token_values=(0.5, 1.0))


@given(st.lists(st.lists(TURNS | st.just(INVALID_TURN), min_size=1, max_size=3), min_size=1, max_size=3))
def test_encode_and_decode_are_inverse(turns: list[list[CreditTurn]]) -> None:
    group = CreditGroup("task", tuple(CreditTrajectory("truncated", tuple(t)) for t in turns))
    assert decode(encode(group)) == group
    assert b"\n" not in encode(group)


def test_the_history_of_a_task_is_not_written() -> None:
    group = decode(line())
    past = CreditGroup(group.task_id, group.trajectories, (PastTransition("A", "x", "B", won=False, count=2.0),))
    assert decode(encode(past)) == group


def test_a_file_gives_groups_and_malformed_lines_by_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    path.write_bytes(b"\n".join([line(), b"", b"{}", line(task_id="u")]))
    assert list(read(path)) == [
        Numbered(1, decode(line())),
        Malformed(3, "", "Object missing required field `task_id`"),
        Numbered(4, decode(line(task_id="u"))),
    ]


def test_a_growing_file_may_end_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    path.write_bytes(line() + b"\n" + line()[:20])
    assert [type(x) for x in read(path)] == [Numbered, Malformed]
    assert [type(x) for x in read(path, is_growing=True)] == [Numbered]


def test_a_line_that_would_fill_the_memory_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interchange, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "groups.jsonl"
    path.write_bytes(b" " * (3 << 20) + b"\n" + line() + b"\n")
    long, short = read(path)
    assert long == Malformed(1, "", "longer than 1 MiB; write one group per line")
    assert isinstance(short, Numbered)
    assert short.line == 2
    assert str(long) == "line 1: longer than 1 MiB; write one group per line"
