"""Games that TextWorld makes, fulfilled by the package's own solution, and not by nonsense."""

import random
from pathlib import Path

import pytest

from milepost.envs.adapters.textworld_env import TextWorldGame

pytestmark = [pytest.mark.sweep, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def _games_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_package_s_solution_fulfils_the_quest_step_by_step() -> None:
    env = TextWorldGame(quest_length=3)
    text, info = env.reset(seed=1)
    assert text.startswith(env._state["objective"])
    anchors, progress, ended = [info["anchor"]], [], False
    while not ended:
        said, reward, ended, truncated, info = env.step(env.demonstration(random.Random(0), noise=0))
        anchors.append(info["anchor"])
        progress.append(info["progress"])
    assert (reward, info["success"], truncated) == (1.0, True, False)
    assert progress == pytest.approx([1 / 3, 2 / 3, 1])
    assert env._state["score"] == 1  # as the game itself counts
    assert "The End" in said
    assert len(set(anchors)) == 4
    assert env.reset(seed=1)[0] == text
    env.close()


def test_nonsense_changes_nothing_and_is_worth_nothing() -> None:
    env = TextWorldGame(max_steps=3)
    text, first = env.reset(seed=1)
    assert "save" not in first["admissible_actions"]
    for turn, response in enumerate(("<answer>save</answer>", "look", "<answer>look</answer><answer>look</answer>")):
        _, reward, ended, truncated, info = env.step(response)
        assert (reward, ended, info["action_valid"], info["anchor"]) == (0, False, False, first["anchor"])
        assert truncated == (turn == 2)
    assert list(Path(".cache/textworld").glob("*/*.z8"))
    other = TextWorldGame(max_steps=3)
    assert other.reset(seed=2)[0] != text
    env.close()
    other.close()


def test_the_anchor_is_what_holds_in_the_world_and_not_the_way_there() -> None:
    env = TextWorldGame()
    _, first = env.reset(seed=1)
    (way, *_) = [command for command in first["admissible_actions"] if command.startswith("go ")]
    back = {"north": "south", "south": "north", "east": "west", "west": "east"}[way.removeprefix("go ")]
    assert env.step("<answer>look</answer>")[4]["anchor"] == first["anchor"]
    assert env.step(f"<answer>{way}</answer>")[4]["anchor"] != first["anchor"]
    assert env.step(f"<answer>go {back}</answer>")[4]["anchor"] == first["anchor"]
    env.close()
