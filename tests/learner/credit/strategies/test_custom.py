"""A user's own strategy as one of the others: built from settings, charged for invalid turns, watched in training."""

import pickle

import numpy as np
import pytest
from pydantic import ValidationError

from milepost.learner.credit.assignment import INVALID, CreditGroup, CreditTrajectory, CreditTurn
from milepost.learner.credit.strategies.custom import Custom, CustomConfig
from milepost.learner.credit.strategies.registry import build, settings
from milepost.learner.credit.trial import StrategyError
from tests.learner.credit.strategies.own_strategies import HERE


def trajectory(reward: float, *actions: str) -> CreditTrajectory:
    last = len(actions) - 1
    return CreditTrajectory(
        "success" if reward else "failure",
        tuple(CreditTurn("A", a, "A", reward * (t == last), a == INVALID, num_tokens=1) for t, a in enumerate(actions)),
    )


GROUP = CreditGroup("g", (trajectory(1.0, "x", "x"), trajectory(0.0, "x"), trajectory(0.0, INVALID)))


def test_a_path_and_its_options_make_the_strategy() -> None:
    config = settings(path=f"{HERE}:LateTurns", options={"fade": 0.25}, invalid_penalty=0.0)
    assert isinstance(config, CustomConfig)
    strategy = build(config)
    assert (strategy.requires, strategy.scaling) == (frozenset(), "unit_rms")
    # Returns 1, 0, 0 less their mean; the first of two turns gets a quarter of its trajectory's 2/3.
    credit = strategy.assign(GROUP)
    np.testing.assert_allclose(np.concatenate(credit.total), [1 / 6, 2 / 3, -1 / 3, -1 / 3])


def test_an_invalid_turn_comes_with_its_penalty() -> None:
    credit = build(settings(path=f"{HERE}:LateTurns", invalid_penalty=0.3)).assign(GROUP)
    # Returns 1, 0, -.3 with mean .7/3.
    np.testing.assert_allclose(credit.traj_adv, [1 - 0.7 / 3, -0.7 / 3, -0.3 - 0.7 / 3])
    assert GROUP.trajectories[2].turns[0].reward == 0.0, "the group itself is left as it is"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("late", "'late' is not of the form package.module:Name"),
        ("no_such_module:Mine", "no module named 'no_such_module'; install it, or start from the folder that holds it"),
        (f"{HERE}:Nobody", f"module {HERE} has no 'Nobody'"),
        (f"{HERE}:NOT_A_CLASS", "not a class with a method assign"),
        (f"{HERE}:NoAssign", "not a class with a method assign"),
        (f"{HERE}:NoScaling", "it has no scaling; docs/credit.md shows"),
        (f"{HERE}:RaisesInConstructor", "it cannot be built with options {}: KeyError: 'no such table'"),
        (f"{HERE}:NeedsNothingIterable", "it cannot be built with options {}: TypeError"),
    ],
)
def test_a_path_that_names_no_strategy_says_why(path: str, reason: str) -> None:
    with pytest.raises(StrategyError) as caught:
        Custom(CustomConfig(path=path))
    assert str(caught.value).startswith(reason) or reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_option_that_the_constructor_does_not_know_is_shown() -> None:
    with pytest.raises(
        StrategyError, match=r"options \{'speed': 2\}: TypeError: .*unexpected keyword argument 'speed'"
    ):
        Custom(CustomConfig(path=f"{HERE}:LateTurns", options={"speed": 2}))


def test_settings_without_a_path_are_refused() -> None:
    with pytest.raises(ValidationError):
        settings(strategy="custom")


def test_what_passed_the_trial_is_still_watched_in_training() -> None:
    strategy = Custom(CustomConfig(path=f"{HERE}:FailsOnLongGroups"))
    many = CreditGroup("g", GROUP.trajectories * 2)
    with pytest.raises(StrategyError, match="total holds something other than finite numbers"):
        strategy.assign(many)


def test_its_error_travels_from_a_learners_process_to_the_driver() -> None:
    error = StrategyError("assign raised KeyError: 3")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
