from __future__ import annotations

from typing import Any

import pytest

from milepost.actors.checks.check import Finding, check_env
from tests.actors.checked_envs import ENDINGS

BROKEN, CHECKED, OURS = "tests.broken_envs", "tests.actors.checked_envs", "milepost.envs"


def of_level(findings: list[Finding], level: str) -> list[str]:
    return [finding.what for finding in findings if finding.level == level]


@pytest.mark.parametrize(
    ("env", "options", "luck"),
    [
        (f"{BROKEN}:CountingEnv", {}, "no luck was seen afterwards"),
        (f"{OURS}.frozen_lake:FrozenLakeText", {}, "no luck was seen afterwards"),
        (
            f"{OURS}.frozen_lake:FrozenLakeText",
            {"slippery": True, "size": 8, "max_steps": 30},
            "each has luck of its own",
        ),
        (f"{OURS}.bandit:TwoArmedBandit", {"max_steps": 9}, "each has luck of its own"),
        (f"{OURS}.key_door:KeyDoorText", {}, "no luck was seen afterwards"),
        (f"{CHECKED}:Dice", {}, "each has luck of its own"),
        (f"{CHECKED}:Dice", {"own": "python, mended"}, "each has luck of its own"),
    ],
)
def test_an_environment_that_keeps_the_contract_has_no_error_and_no_warning(
    env: str, options: dict[str, Any], luck: str
) -> None:
    findings = check_env(env, options).findings
    assert of_level(findings, "error") + of_level(findings, "warning") == []
    assert len(of_level(findings, "ok")) == 10
    assert any(what.endswith(luck) for what in of_level(findings, "ok"))


@pytest.mark.parametrize(
    ("env", "what"),
    [
        (f"{BROKEN}:NoSuchEnv", "has no 'NoSuchEnv'"),
        (f"{BROKEN}:RaisesInReset", "reset raised RuntimeError: broken in reset"),
        (f"{BROKEN}:RaisesInStep", "step raised RuntimeError: broken in step"),
        (f"{BROKEN}:ReturnsNoText", "step: observation must be text (str), found int"),
        (f"{BROKEN}:NanReward", "step: reward must be finite, found nan"),
        (f"{CHECKED}:RandomStart", "reset(seed=0) gives another observation the second time"),
        (f"{CHECKED}:RandomReward", "turn 0 goes another way"),
        (f"{CHECKED}:StartsByItsEpisode", "reset(seed=0) gives another observation in another episode of the task"),
        (f"{CHECKED}:NeedsText", "the response '' (0 characters): step raised IndexError"),
        (f"{CHECKED}:CannotClose", "close() raised OSError: socket is gone"),
        (f"{CHECKED}:Says", "an observation holds '<|im_end|>'"),
        (f"{CHECKED}:SaysMuch", "the first observation has 70000 characters, some 17500 tokens"),
    ],
)
def test_a_broken_environment_gets_one_error_with_a_fix(env: str, what: str) -> None:
    findings = check_env(env).findings
    errors = [finding for finding in findings if finding.level == "error"]
    assert [what in error.what for error in errors] == [True], errors
    assert findings[0] == errors[0]
    assert errors[0].fix


@pytest.mark.parametrize(
    ("env", "options", "what"),
    [
        ("NumberSpace", {}, "no gymnasium.spaces.Text in action_space"),
        ("CounterInAnchor", {}, "two anchors in one episode"),
        ("CounterInObservation", {}, "had no valid action, yet the anchor changed"),
        ("AnchorOfTheInstance", {}, "seed 0 played twice: equal observations, other anchors"),
        ("NoEnd", {}, "none of 3 episodes ended within 50 turns"),
        (
            "SilentEnd",
            {},
            "ended without info['success']: credit goes by returns, and an episode whose rewards add up to",
        ),
        ("CountsInItsAnchor", {}, "holds a counter, a number that moves one way in every turn: 'at 0 in turn"),
        ("TellsItsHistory", {}, "the anchor holds the history, it only grows: "),
        ("NeverTheSame", {}, "states hardly recur: of "),
        ("Dice", {"own": "python"}, "share the luck of env.dice:"),
        ("Dice", {"own": "numpy"}, "share the luck of env.dice[0]:"),
        ("Dice", {"own": "lake"}, "share the luck of env.dice['inner']._np_random:"),
        ("Says", {"text": "as <s>struck</s>"}, "an observation holds '<s>'"),
    ],
)
def test_a_suspicious_environment_gets_a_warning_with_a_fix(env: str, options: dict[str, Any], what: str) -> None:
    findings = check_env(f"{CHECKED}:{env}", options).findings
    assert of_level(findings, "error") == []
    warnings = [finding for finding in findings if finding.level == "warning"]
    assert any(what in warning.what for warning in warnings)
    assert all(warning.fix for warning in warnings)


def test_success_alone_ends_an_episode_as_it_does_in_a_run() -> None:
    findings = check_env(f"{CHECKED}:SuccessWithoutAnEnd").findings
    assert any("episodes end and say whether they succeeded" in finding.what for finding in findings)


@pytest.mark.parametrize("error", [ending.__name__ for ending in ENDINGS])
@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("constructor", "environment Leaves cannot be built"),
        ("reset", "reset raised {}: out"),
        ("step", "step raised {}: out"),
        ("close", "close() raised {}: out"),
    ],
)
def test_what_would_end_a_program_is_a_finding(where: str, what: str, error: str) -> None:
    errors = of_level(check_env(f"{CHECKED}:Leaves", {"where": where, "error": error}).findings, "error")
    expected = what.format(error)
    if (where, error) == ("constructor", "KeyboardInterrupt"):
        expected = "reset raised KeyboardInterrupt: out"
    assert len(errors) == 1
    assert errors[0].startswith(expected)
