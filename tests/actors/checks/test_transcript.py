"""check-env shows an episode: readable, bounded, and up to where it failed."""

from typing import Any

from milepost.actors.checks.check import check_env
from tests.broken_envs import CountingEnv

HERE = "tests.actors.checks.test_transcript"


class Talks(CountingEnv):
    """Long, and with a terminal's control characters."""

    def reset(self, **arguments: Any) -> Any:
        return "first\nsecond\x1b[31m" + "x" * 3000, super().reset(**arguments)[1] | {"anchor": "start"}

    def step(self, response: str) -> Any:
        observation, reward, _, _, info = super().step(response)
        if self.turn == 20:
            return observation, 0.5, False, True, info
        return observation, reward, False, False, info | {"action_valid": False, "success": None}


class Faints(CountingEnv):
    def step(self, response: str) -> Any:
        if self.turn == 1:
            raise RuntimeError("fainted")
        return super().step(response)


def test_an_episode_is_shown_with_its_first_and_last_turns_and_no_control_characters() -> None:
    lines = check_env(f"{HERE}:Talks").episode
    assert lines[0] == "  observation  first"
    assert lines[1].startswith(r"               second\x1b[31mxxx")
    assert lines[1].endswith("x ... (3017 characters)")
    assert lines[2] == "  anchor       start"
    assert [line for line in lines if not line.startswith(" ")] == [
        *["turn 0", "turn 1", "turn 2"],
        "... 14 turns left out",
        *["turn 17", "turn 18", "turn 19"],
    ]
    assert lines[5] == "  action       (no valid one)"
    assert lines[-1] == "  reward       0.5, truncated"
    assert sum(map(len, lines)) < 5000


def test_an_episode_that_failed_is_shown_up_to_there() -> None:
    report = check_env(f"{HERE}:Faints")
    assert report.findings[0].what == "step raised RuntimeError: fainted"
    assert report.episode[0] == "  observation  0"
    assert [line for line in report.episode if line.startswith("turn")] == ["turn 0"]


def test_an_environment_that_was_never_reset_shows_none() -> None:
    assert check_env("tests.broken_envs:RaisesInReset").episode == []
    assert check_env("tests.broken_envs:NoSuchEnv").episode == []
