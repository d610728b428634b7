"""Worked examples of the dashboard's signals, to the digits in which they are published with their definitions."""

import pytest

from milepost.reward.evaluators.variance import reward_variance
from milepost.reward.evaluators.wilson import wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high", "digits"),
    [
        (6, 40, 0.0706, 0.2907, 4),
        (2, 40, 0.0138, 0.1650, 4),
        (2, 9, 0.063, 0.547, 3),
        (123, 128, 0.912, 0.983, 3),  # one run on the field's usual 128 tasks: 96.09 %
        (369, 384, 0.937, 0.976, 3),  # three seeds of the same
    ],
)
def test_wilson_intervals_to_their_digits(successes: int, n: int, low: float, high: float, digits: int) -> None:
    assert tuple(round(end, digits) for end in wilson_interval(successes, n)) == (low, high)


def test_one_run_of_128_tasks_cannot_tell_neighbouring_methods_apart() -> None:
    low, high = wilson_interval(123, 128)
    assert low < 0.957 < high
    assert wilson_interval(6, 40)[0] < wilson_interval(2, 40)[1]  # not yet a regression


def test_variance_inside_groups_to_its_digits() -> None:
    found = reward_variance([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert round(found.within, 4) == 0.0833
    assert round(found.between, 4) == 0.1667
