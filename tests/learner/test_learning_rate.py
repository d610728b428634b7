"""The learning-rate schedule, by hand."""

import pytest

from milepost.learner.zero.zero_model import learning_rate_factor


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 1 / 3), (1, 2 / 3), (2, 1.0), (7, 0.55), (12, 0.1), (1000, 0.1)],
)
def test_the_rate_rises_then_falls_linearly_to_a_tenth(step: int, factor: float) -> None:
    assert learning_rate_factor(step, warmup_steps=2, decay_steps=10) == pytest.approx(factor)


def test_without_warmup_and_decay_the_rate_is_constant() -> None:
    assert [learning_rate_factor(step, warmup_steps=0, decay_steps=0) for step in (0, 1, 500)] == [1.0, 1.0, 1.0]
