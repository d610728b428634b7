from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.actors.checks.check import check_env
from milepost.envs.key_door import MOVES, KeyDoorText, Rooms, State, moved, moves_left

SMALL = Rooms(height=3, width=2, start=(0, 0), key=(2, 0), door=(1, 2), goal=(0, 4))
"""
P _ # _ G
_ _ D _ _
K _ # _ _
"""


@pytest.fixture
def env() -> KeyDoorText:
    """Seed 0 draws the rooms that `test_the_first_observation_...` shows."""
    env = KeyDoorText()
    env.reset(seed=0)
    return env


def walk(env: KeyDoorText, moves: str) -> Any:
    return [env.step(move) for move in moves.split()][-1]


def run_through(rooms: Rooms, moves: str) -> State:
    state = State(rooms.start, "locked")
    for move in moves.split():
        state = moved(rooms, state, move)
    return state


def test_the_first_observation_has_rules_and_rooms_and_every_one_names_walls_and_the_next_thing(
    env: KeyDoorText,
) -> None:
    first, info = env.reset(seed=0)
    assert first == (
        "You are P. Take the key K, open the door D in the wall # with it and walk on to the goal G.\n"
        "Answer with one word: up, down, left or right.\n"
        "_ _ _ _ D _ _ _ _\n_ _ _ _ # _ _ _ _\n_ _ P _ # _ _ _ _\n"
        "_ _ _ _ # _ _ G _\n_ _ _ _ # _ _ _ _\n_ _ _ K # _ _ _ _\n"
        "Walls none. Key 3 down, 1 right."
    )
    assert env.observation_space.contains(first)
    assert info["anchor"].endswith(":2,2:locked")
    assert walk(env, "right")[0] == "Walls right. Key 3 down."
    assert walk(env, "down down down")[0] == "Walls down, right. Locked door 5 up, 1 right."
    assert walk(env, "up up up up up")[0] == "Walls up. Locked door 1 right."
    assert walk(env, "right")[0] == "Walls up. Open door 1 right."
    assert walk(env, "right")[0] == "Walls up, down. Goal 3 down, 3 right."
    assert walk(env, "right down down down right right")[0] == "Walls none. Goal here."


def test_only_the_goal_pays_and_ends_the_episode(env: KeyDoorText) -> None:
    *before, last = ["right", *["down"] * 3, *["up"] * 5, *["right"] * 3, *["down"] * 3, "right", "right"]
    steps = [env.step(move) for move in before]
    assert [(step[1], step[2]) for step in steps] == [(0.0, False)] * 16
    _, reward, terminated, truncated, info = env.step(last)
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert (info["success"], info["progress"]) == (True, 1.0)


def test_the_door_is_a_wall_without_the_key() -> None:
    assert run_through(SMALL, "down right right") == State((1, 1), "locked")


def test_the_key_opens_the_door_and_the_next_move_goes_through() -> None:
    assert run_through(SMALL, "down down") == State((2, 0), "key")
    assert run_through(SMALL, "down down up right right") == State((1, 1), "open")
    assert run_through(SMALL, "down down up right right right") == State((1, 2), "open")
    assert run_through(SMALL, "down down up right right right up") == State((1, 2), "open")  # the wall above the door


def test_an_opened_door_stays_open_on_the_way_back() -> None:
    there_and_back = "down down up right right right left right right"
    assert run_through(SMALL, there_and_back) == State((1, 3), "open")


def test_moves_left_counts_key_lock_and_door() -> None:
    assert moves_left(SMALL, State((0, 0), "locked")) == 2 + 3 + 1 + 3
    assert moves_left(SMALL, State((2, 0), "key")) == 3 + 1 + 3
    assert moves_left(SMALL, State((1, 1), "open")) == 1 + 3
    assert moves_left(SMALL, State((2, 3), "open")) == 3
    assert moves_left(SMALL, State((0, 4), "open")) == 0


@settings(max_examples=40)
@given(seed=st.integers(0, 2**53))
def test_moves_left_is_the_shortest_way_found_by_search(seed: int) -> None:
    env = KeyDoorText(height=4, width=3, min_path=1, max_path=30)
    env.reset(seed=seed)
    rooms = env._rooms
    depth, frontier, seen = 0, {State(rooms.start, "locked")}, set[State]()
    while all(state.cell != rooms.goal for state in frontier):
        seen |= frontier
        frontier = {moved(rooms, state, action) for state in frontier for action in MOVES} - seen
        depth += 1
    assert moves_left(rooms, State(rooms.start, "locked")) == depth


@settings(max_examples=60)
@given(seed=st.integers(0, 2**53), bounds=st.sampled_from([(15, 20), (20, 20), (1, 10), (15, 100)]))
def test_the_expert_needs_as_many_moves_as_the_bounds_allow(seed: int, bounds: tuple[int, int]) -> None:
    env = KeyDoorText(min_path=bounds[0], max_path=bounds[1], max_steps=100)
    env.reset(seed=seed)
    rng = random.Random(seed)
    progress, terminated = [], False
    while not terminated:
        _, _, terminated, _, info = env.step(env.demonstration(rng, 0.0))
        progress.append(info["progress"])
    assert bounds[0] <= len(progress) <= bounds[1]
    assert progress == pytest.approx([(i + 1) / len(progress) for i in range(len(progress))])


def test_a_noisy_expert_makes_every_move_somewhere(env: KeyDoorText) -> None:
    rng = random.Random(0)
    moves = [env.demonstration(rng, 1.0) for _ in range(400)]
    assert {move: 60 < moves.count(move) < 140 for move in MOVES} == dict.fromkeys(MOVES, True)


def test_the_anchor_names_rooms_cell_and_lock_and_nothing_else(env: KeyDoorText) -> None:
    _, start = env.reset(seed=0)
    other = KeyDoorText()
    assert other.reset(seed=1)[1]["anchor"] != start["anchor"]
    assert walk(env, "left right")[-1]["anchor"] == start["anchor"]
    back_with_key = walk(env, "right down down down up up up left")[-1]["anchor"]
    assert back_with_key.replace(":key", ":locked") == start["anchor"]
    assert back_with_key != start["anchor"]


@pytest.mark.parametrize("response", ["", "north", "up down", "<answer>up</answer>", "up.", "x" * 10_000])
def test_a_response_that_is_no_move_moves_nobody_and_costs_a_turn(response: str) -> None:
    env = KeyDoorText(max_steps=2)
    _, start = env.reset(seed=0)
    _, reward, _, truncated, info = env.step(response)
    assert (info["anchor"], info["action"], info["action_valid"]) == (start["anchor"], None, False)
    assert (reward, truncated) == (0.0, False)
    _, _, terminated, truncated, info = env.step(response)
    assert (terminated, truncated, info["success"]) == (False, True, False)


def test_a_move_is_read_in_any_case_and_with_space_around_it(env: KeyDoorText) -> None:
    assert env.step(" Right\n")[-1]["action"] == "right"


def test_going_astray_is_no_negative_progress(env: KeyDoorText) -> None:
    assert walk(env, "up up left left")[-1]["progress"] == 0.0


def test_it_keeps_the_contract() -> None:
    assert [
        finding for finding in check_env("milepost.envs.key_door:KeyDoorText").findings if finding.level != "ok"
    ] == []


@pytest.mark.parametrize(
    "options",
    [{"height": 1}, {"width": 11}, {"min_path": 0}, {"min_path": 21, "max_path": 30}, {"max_path": 14},
     {"max_path": 9, "min_path": 1}, {"max_steps": 0}],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        KeyDoorText(**options)
