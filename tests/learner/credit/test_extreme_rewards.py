"""Rewards at the edges of what is let in: every strategy, the filter and the batch scale stay finite."""

import warnings

import numpy as np
import pytest

from milepost.envs.types import MAX_REWARD
from milepost.learner.credit.assignment import INVALID, CreditGroup, CreditTrajectory, CreditTurn
from milepost.learner.credit.filter import FilterConfig, keep_groups, weighted
from milepost.learner.credit.scaling import scaled
from milepost.learner.credit.settings import CreditSettings
from milepost.learner.credit.strategies.registry import SETTINGS, build
from milepost.learner.credit.strategies.registry import settings as credit_settings
from tests.learner.credit.random_groups import assert_finite

CASES = {
    "the largest": [[MAX_REWARD], [0.0], [1.0], [0.5]],
    "the largest, both signs": [[MAX_REWARD], [-MAX_REWARD], [0.0], [1.0]],
    "the largest in two turns": [[MAX_REWARD / 2, MAX_REWARD / 2], [0.0, 0.0], [1.0, 0.0], [0.5, 0.0]],
    "denormal": [[5e-324], [0.0], [0.0], [0.0]],
    "a tiny spread on a huge return": [[1e12 - 1], [1e12], [1e12], [1e12]],
    "tiny": [[1e-12], [0.0], [0.0], [2e-12]],
    "identical": [[1.0], [1.0], [1.0], [1.0]],
    "alone": [[1.0]],
    "negative": [[-5.0], [-7.0], [-100.0], [-3.0]],
}
CONFIGS = [
    *(credit_settings(strategy=name) for name in SETTINGS if name != "custom"),
    *(credit_settings(strategy="starpo", baseline=name) for name in ("rloo", "dr_grpo")),
    credit_settings(strategy="crbc", objective="return"),
    credit_settings(strategy="pbrs", potential="value"),
    credit_settings(strategy="g2po", scale="none"),
]


def trajectory(k: int, rewards: list[float]) -> CreditTrajectory:
    names = ["s0", *(f"n{(k + t) % 3}" for t in range(len(rewards)))]
    turns = tuple(
        CreditTurn(
            names[t],
            INVALID if k == 3 else "abc"[k],
            names[t + 1],
            reward,
            invalid=k == 3,
            num_tokens=2,
            progress=0.5,
            entropy=0.1 * k,
            history_gain=-0.1,
            value=1e3 * k,
            token_values=(1e3 * k, -1e3),
        )
        for t, reward in enumerate(rewards)
    )
    return CreditTrajectory("success" if sum(rewards) > 0 else "truncated", turns)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join([c.strategy, getattr(c, "baseline", "")]))
@pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
def test_nothing_on_the_way_to_the_loss_is_not_finite(config: CreditSettings, rows: list[list[float]]) -> None:
    group = CreditGroup("g", tuple(trajectory(k, rewards) for k, rewards in enumerate(rows)))
    strategy = build(config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        credit = strategy.assign(group)
        assert_finite(credit)
        verdicts = keep_groups([group], [credit], FilterConfig())
        (brought,) = weighted(
            scaled([credit], [[np.ones(len(t.turns)) for t in group.trajectories]], strategy.scaling), verdicts
        )
    assert_finite(brought)
    assert max(float(np.abs(total).max()) for total in brought.total) < 10


@pytest.mark.parametrize("rewards", [[MAX_REWARD, 1.0], [-MAX_REWARD, MAX_REWARD], [1e308, 1e308], [1e300] * 3])
def test_rewards_beyond_the_limit_are_refused_where_they_enter(rewards: list[float]) -> None:
    with pytest.raises(ValueError, match=r"add up to .* in magnitude, the limit is 1e\+12"):
        trajectory(0, rewards)
