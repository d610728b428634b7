from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.envs.answer import read_answer, write_answer
from milepost.envs.frozen_lake import MOVES, FrozenLakeText, distances_to_goal


@pytest.fixture
def lake() -> FrozenLakeText:
    """Seed 1 draws the map that `test_the_first_observation_...` shows."""
    env = FrozenLakeText()
    env.reset(seed=1)
    return env


def walk(env: FrozenLakeText, *moves: str) -> Any:
    return [env.step(write_answer(move)) for move in moves][-1]


def test_the_first_observation_has_rules_and_map_and_every_one_says_what_lies_around() -> None:
    env = FrozenLakeText()
    first, info = env.reset(seed=1)
    assert first == (
        "You are P. Walk over the ice _ to the goal G, never into a hole O.\n"
        "Answer <answer>Up</answer>, <answer>Down</answer>, <answer>Left</answer> or <answer>Right</answer>.\n"
        "P _ _ _\n_ O O O\n_ _ _ _\n_ _ _ G\n"
        "Up wall, down ice, left wall, right ice. Goal: 3 down, 3 right."
    )
    assert env.observation_space.contains(first)
    assert info["anchor"].endswith(":0,0")
    assert walk(env, "Right")[0] == "Up wall, down hole, left ice, right ice. Goal: 3 down, 2 right."


def test_reaching_the_goal_pays_one_and_succeeds(lake: FrozenLakeText) -> None:
    observation, reward, terminated, truncated, info = walk(lake, "Down", "down", "RIGHT", "Right", "Right", "Down")
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert (info["success"], info["progress"]) == (True, 1.0)
    assert observation == "Up ice, down wall, left ice, right wall. Goal: here."


def test_a_hole_ends_the_episode_without_reward(lake: FrozenLakeText) -> None:
    _, reward, terminated, truncated, info = walk(lake, "Right", "Down")
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert (info["success"], info["progress"]) == (False, 0.0)


def test_progress_is_the_share_of_the_shortest_way(lake: FrozenLakeText) -> None:
    assert walk(lake, "Down")[-1]["progress"] == pytest.approx(1 / 6)
    assert walk(lake, "Down", "Right")[-1]["progress"] == pytest.approx(3 / 6)
    assert walk(lake, "Left", "Up", "Up", "Right")[-1]["progress"] == 0.0  # farther away than at the start


def test_the_episode_is_truncated_after_max_steps() -> None:
    env = FrozenLakeText(max_steps=3)
    env.reset(seed=1)
    assert walk(env, "Left", "Left")[3] is False
    _, _, terminated, truncated, info = walk(env, "Left")
    assert (terminated, truncated, info["success"]) == (False, True, False)


def test_reaching_the_goal_on_the_last_turn_is_no_truncation() -> None:
    env = FrozenLakeText(max_steps=6)
    env.reset(seed=1)
    assert walk(env, "Down", "Down", "Right", "Right", "Right", "Down")[2:4] == (True, False)


@pytest.mark.parametrize(
    "response",
    ["", "Right", "<answer>North</answer>", "<answer></answer>", "<answer>Left</answer> <answer>Right</answer>",
     "<answer>Right", "<answer>Up or Down</answer>", "<answer><answer>Right</answer></answer>"],
)  # fmt: skip
def test_an_answer_that_is_no_move_moves_nobody_and_costs_a_turn(response: str) -> None:
    env = FrozenLakeText(max_steps=2)
    _, start = env.reset(seed=1)
    _, reward, _, truncated, info = env.step(response)
    assert (info["anchor"], info["action"], info["action_valid"]) == (start["anchor"], None, False)
    assert (reward, truncated) == (0.0, False)
    assert env.step(response)[3] is True


def test_an_answer_is_read_in_any_case_and_amid_other_text() -> None:
    assert read_answer("I think. <ANSWER> rIGHT\n</Answer> Done.", tuple(MOVES)) == "right"


@given(st.text(max_size=200))
def test_any_text_is_an_answer_or_none(text: str) -> None:
    assert read_answer(text, tuple(MOVES)) in (*MOVES, None)
    assert read_answer(f"{text.replace('<', '')}<answer>up</answer>", tuple(MOVES)) == "up"


def test_the_anchor_names_map_and_cell_and_nothing_else() -> None:
    env, other = FrozenLakeText(), FrozenLakeText()
    _, start = env.reset(seed=1)
    _, elsewhere = other.reset(seed=2)
    assert start["anchor"] != elsewhere["anchor"]
    assert walk(env, "Right", "Left")[-1]["anchor"] == start["anchor"]
    assert walk(env, "Down")[-1]["anchor"] != start["anchor"]


def test_distances_go_around_holes() -> None:
    assert distances_to_goal(["SHF", "FHF", "FFG"]) == {
        (0, 0): 4, (1, 0): 3, (2, 0): 2, (2, 1): 1, (2, 2): 0, (1, 2): 1, (0, 2): 2,
    }  # fmt: skip


@settings(max_examples=40)
@given(seed=st.integers(0, 2**53), size=st.integers(2, 8))
def test_the_expert_reaches_every_goal_by_a_shortest_way(seed: int, size: int) -> None:
    env = FrozenLakeText(size=size, max_steps=size * size)
    env.reset(seed=seed)
    rng = random.Random(seed)
    progress, ended, steps = [], False, 0
    while not ended:
        _, _, terminated, truncated, info = env.step(env.demonstration(rng, 0.0))
        progress.append(info["progress"])
        ended, steps = terminated or truncated, steps + 1
    assert info["success"]
    assert progress == pytest.approx([(i + 1) / steps for i in range(steps)])


def test_a_noisy_expert_makes_every_move_somewhere(lake: FrozenLakeText) -> None:
    rng = random.Random(0)
    moves = [read_answer(lake.demonstration(rng, 1.0), tuple(MOVES)) for _ in range(400)]
    assert {move: 60 < moves.count(move) < 140 for move in MOVES} == dict.fromkeys(MOVES, True)


def test_a_slippery_lake_slips_to_the_sides_and_repeats_with_its_seed() -> None:
    env = FrozenLakeText(slippery=True, frozen_share=1.0, size=8, max_steps=100)

    def cells() -> list[str]:
        assert "slippery" in env.reset(seed=5)[0]
        return [walk(env, "Right")[-1]["anchor"].split(":")[1] for _ in range(30)]

    seen = cells()
    assert cells() == seen
    assert len({cell.split(",")[0] for cell in seen}) > 1


def test_without_a_seed_the_next_map_is_another_one() -> None:
    env = FrozenLakeText(size=8)
    env.reset(seed=0)
    assert len({env.reset()[0] for _ in range(5)}) == 5


@pytest.mark.parametrize("options", [{"size": 1}, {"size": 13}, {"frozen_share": 0.2}, {"max_steps": 0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        FrozenLakeText(**options)
