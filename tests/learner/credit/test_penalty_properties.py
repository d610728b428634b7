"""A format penalty costs what it is worth, whatever else the group did: no deviation of its own blows it up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.learner.credit.assignment import CreditGroup
from milepost.learner.credit.settings import CreditSettings
from milepost.learner.credit.strategies.registry import SETTINGS, build
from milepost.learner.credit.strategies.registry import settings as credit_settings
from tests.learner.credit.random_groups import groups, unhurried


def penalised(config: CreditSettings, penalty: float) -> CreditSettings:
    return config.model_copy(update={"invalid_penalty": penalty})


@pytest.mark.parametrize(
    "config", [credit_settings(strategy=name) for name in SETTINGS if name != "custom"], ids=lambda c: c.strategy
)
@unhurried
@given(group=groups(), penalty=st.sampled_from([0.01, 0.1, 1.0]))
def test_a_penalty_changes_a_total_by_at_most_twice_what_the_worst_trajectory_lost(
    config: CreditSettings, group: CreditGroup, penalty: float
) -> None:
    free, costly = (build(penalised(config, each)).assign(group) for each in (0.0, penalty))
    weights = getattr(config, "w_trajectory", 0.0) + getattr(config, "w_step", 1.0)
    bound = weights * 2 * penalty * max(trajectory.num_invalid for trajectory in group.trajectories)
    for before, after in zip(free.total, costly.total, strict=True):
        assert np.abs(after - before).max() <= bound + 1e-9 * max(1.0, np.abs(before).max())


@pytest.mark.parametrize(("strategy", "cost"), [("starpo", 0.175), ("gigpo", 0.35), ("g2po", 0.35), ("crbc", 0.175)])
def test_one_invalid_turn_in_a_group_of_successes_costs_a_penalty_and_not_a_failure(strategy: str, cost: float) -> None:
    """Eight stand in one state and succeed; the answer of one of them has no valid form but wins all the same."""
    group = CreditGroup.from_walks(*["A x B success"] * 7, "A <invalid> B success")
    free, costly = (
        build(credit_settings(strategy=strategy, invalid_penalty=each)).assign(group) for each in (0.0, 0.1)
    )
    # .1 less its mean .0125, over .5, once for the trajectory and, where turns are compared, once for the turn.
    assert (costly.total[-1] - free.total[-1]).tolist() == pytest.approx([-cost])
    assert min(float(total.min()) for total in costly.total) == pytest.approx(-cost)
