"""Plays the environment without a model: python -m pytest -q."""

from typing import Any

from higher_lower import HigherLower

from milepost.actors.checks.check import check_env


def played(guesses: list[int], *, secret: int) -> tuple[float, dict[str, Any]]:
    """The reward and the info of the last of `guesses`."""
    env = HigherLower()
    env.reset(seed=0)
    env.secret = secret
    for guess in guesses:
        _, reward, _, _, info = env.step(f"<answer>{guess}</answer>")
    return reward, info


def test_the_number_wins() -> None:
    reward, info = played([8, 12, 14], secret=14)
    assert (reward, info["success"]) == (1.0, True)


def test_a_wrong_guess_leaves_the_half_that_holds_the_number() -> None:
    reward, info = played([8, 12], secret=14)
    assert (reward, info["success"]) == (0.0, False)
    assert info["anchor"].startswith("A number from 13 to 15.")


def test_it_keeps_the_contract_of_a_training() -> None:
    assert [finding for finding in check_env("higher_lower:HigherLower").findings if finding.level == "error"] == []
