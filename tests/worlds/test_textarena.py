"""Games of TextArena, played well, badly and beside the same game without Milepost."""

import random
from collections import deque

import pytest
from gymnasium.utils import seeding

from milepost.envs.adapters.textarena_env import TextArenaGame

pytestmark = pytest.mark.sweep
WAYS = {"[up]": (-1, 0), "[down]": (1, 0), "[left]": (0, -1), "[right]": (0, 1)}


def way_over_the_lake(state: dict) -> list[str]:
    """The shortest moves to the goal around the holes."""
    grid, queue, seen = state["grid"], deque([(state["player_pos"], [])]), set()
    while queue:
        (row, column), moves = queue.popleft()
        if (row, column) == state["goal_pos"]:
            return moves
        if (row, column) in seen or grid[row][column] == "H":
            continue
        seen.add((row, column))
        for move, (down, right) in WAYS.items():
            if 0 <= row + down < len(grid) and 0 <= column + right < len(grid):
                queue.append(((row + down, column + right), [*moves, move]))
    raise AssertionError("there is no way")


def test_a_player_who_sees_the_holes_wins_what_the_package_says() -> None:
    import textarena

    env = TextArenaGame(game="FrozenLake-v0")
    for seed in range(5):
        text, info = env.reset(seed=seed)
        assert text.startswith("Welcome to Frozen Lake!")
        assert info["cohort"] == "FrozenLake-v0"
        theirs = textarena.make("FrozenLake-v0-raw")
        theirs.reset(num_players=1, seed=int(seeding.np_random(seed)[0].integers(2**31)))
        assert theirs.state.game_state == env._game.state.game_state
        for move in way_over_the_lake(theirs.state.game_state):
            said, reward, ended, _, info = env.step(f"I go {move}")
            assert info["action"] == move
            done, _ = theirs.step(move)
            assert done == ended
        assert (reward, ended, info["success"]) == (theirs.close()[0][0], True, True) == (1, True, True)
        assert said.endswith("You reached the goal!")


def test_two_moves_that_are_none_end_the_game_without_a_reward() -> None:
    env = TextArenaGame(game="FrozenLake-v0")
    _, first = env.reset(seed=0)
    _, reward, ended, _, info = env.step("north, please")
    assert (reward, ended, info["action_valid"], info["anchor"]) == (0, False, False, first["anchor"])
    _, reward, ended, _, info = env.step("north!")
    assert (reward, ended, info["success"]) == (0, True, False)


def test_the_anchor_of_a_place_does_not_know_the_way_there() -> None:
    env = TextArenaGame(game="FrozenLake-v0", config={"num_holes": 0})
    _, start = env.reset(seed=0)
    anchors = [env.step(move)[4]["anchor"] for move in ("[right]", "[left]", "[down]", "[up]")]
    assert anchors[1] == anchors[3] == start["anchor"]
    assert anchors[0] != anchors[2]


def test_the_opponent_draws_listed_moves_from_the_episode_s_luck_and_leaves_python_s_generator_alone() -> None:
    def game(episode: int) -> tuple[str, float]:
        env, told, state = TextArenaGame(game="TicTacToe-v0", opponent="random"), "", random.getstate()
        _, info = env.reset(seed=0, options={"episode_seed": episode})
        ended = False
        while not ended:
            said, reward, ended, _, info = env.step(info["admissible_actions"][0])
            assert info["action_valid"]
            assert info["success"] == (reward == 1)
            told += said
        assert random.getstate() == state
        return told, reward

    games = [game(episode) for episode in range(12)]
    assert games == [game(episode) for episode in range(12)]
    assert len({told for told, _ in games}) > 6
    assert {reward for _, reward in games} <= {-1, 0, 1}
    assert 1 in {reward for _, reward in games}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"game": "NoSuchGame"}, "NoSuchGame-raw not found in registry"),
        ({"game": "TicTacToe-v0"}, "number of players has to be 2"),
        ({"game": "ColonelBlotto-v0", "opponent": "random"}, "lists no moves"),
    ],
)
def test_a_game_that_cannot_be_played_so_is_refused_in_one_line(options: dict, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        TextArenaGame(**options)
    assert "\n" not in str(refused.value)
