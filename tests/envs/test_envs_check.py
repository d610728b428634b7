from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from milepost.envs.bandit import TwoArmedBandit
from milepost.envs.check import Finding, check_env
from milepost.envs.frozen_lake import FrozenLakeText
from tests.broken_envs import CountingEnv, NanReward, RaisesInReset, RaisesInStep, ReturnsNoText


class NumberSpace(CountingEnv):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = gymnasium.spaces.Discrete(2)


class RandomStart(CountingEnv):
    def reset(self, **_: Any) -> Any:
        _, info = super().reset()
        return str(np.random.default_rng().random()), info


class RandomReward(CountingEnv):
    def step(self, response: str) -> Any:
        observation, _, *rest = super().step(response)
        return (observation, np.random.default_rng().random(), *rest)


class CounterInAnchor(CountingEnv):
    def step(self, response: str) -> Any:
        *head, info = super().step(response)
        return (*head, info | {"anchor": f"{self.count} at turn {self.turn}"})


class CounterInObservation(CountingEnv):
    def step(self, response: str) -> Any:
        _, *middle, info = super().step(response)
        del info["anchor"]
        return (f"{self.count} at turn {self.turn}", *middle, info)


class AnchorOfTheInstance(CountingEnv):
    def reset(self, **_: Any) -> Any:
        observation, info = super().reset()
        return observation, info | {"anchor": f"{observation} at {id(self)}"}

    def step(self, response: str) -> Any:
        observation, *middle, info = super().step(response)
        return (observation, *middle, info | {"anchor": f"{observation} at {id(self)}"})


class NoEnd(CountingEnv):
    def step(self, response: str) -> Any:
        observation, reward, _, _, info = super().step(response)
        return observation, reward, False, False, info


class SilentEnd(CountingEnv):
    def step(self, response: str) -> Any:
        *head, info = super().step(response)
        return (*head, info | {"success": None})


class NeedsText(CountingEnv):
    def step(self, response: str) -> Any:
        return super().step(response.split()[0])


class CannotClose(CountingEnv):
    def close(self) -> None:
        raise OSError("socket is gone")


def of_level(findings: list[Finding], level: str) -> list[str]:
    return [finding.what for finding in findings if finding.level == level]


@pytest.mark.parametrize(
    ("env", "options"),
    [
        (CountingEnv, {}),
        ("milepost.envs.frozen_lake:FrozenLakeText", {}),
        (FrozenLakeText, {"slippery": True, "size": 8, "max_steps": 30}),
        (TwoArmedBandit, {"max_steps": 5}),
    ],
)
def test_an_environment_that_keeps_the_contract_has_no_error_and_no_warning(env: Any, options: dict[str, Any]) -> None:
    findings = check_env(env, options)
    assert of_level(findings, "error") + of_level(findings, "warning") == []
    assert len(of_level(findings, "ok")) == 8


@pytest.mark.parametrize(
    ("env", "what"),
    [
        ("tests.broken_envs:NoSuchEnv", "has no 'NoSuchEnv'"),
        (NumberSpace, "no gymnasium.spaces.Text in action_space"),
        (RaisesInReset, "an episode raised RuntimeError: broken in reset"),
        (RaisesInStep, "an episode raised RuntimeError: broken in step"),
        (ReturnsNoText, "step: observation must be text (str), found int"),
        (NanReward, "step: reward must be finite, found nan"),
        (RandomStart, "reset(seed=0) gives another observation"),
        (RandomReward, "turn 0 goes another way"),
        (NeedsText, "the response '' (0 characters) raised IndexError"),
        (CannotClose, "close() raised OSError: socket is gone"),
    ],
)
def test_a_broken_environment_gets_one_error_with_a_fix(env: Any, what: str) -> None:
    findings = check_env(env)
    errors = [finding for finding in findings if finding.level == "error"]
    assert len(errors) == 1
    assert findings[0] == errors[0]
    assert what in errors[0].what
    assert errors[0].fix


@pytest.mark.parametrize(
    ("env", "what"),
    [
        (CounterInAnchor, "two anchors in one episode"),
        (CounterInObservation, "had no valid action, yet the anchor changed"),
        (AnchorOfTheInstance, "seed 0 played twice: equal observations, other anchors"),
        (NoEnd, "none of 3 episodes ended within 50 turns"),
        (SilentEnd, "ended without info['success']"),
    ],
)
def test_a_suspicious_environment_gets_a_warning_with_a_fix(env: Any, what: str) -> None:
    findings = check_env(env)
    assert of_level(findings, "error") == []
    warnings = [finding for finding in findings if finding.level == "warning"]
    assert any(what in warning.what for warning in warnings)
    assert all(warning.fix for warning in warnings)
