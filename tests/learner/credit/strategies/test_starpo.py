"""Trajectory advantages by hand: returns [1, 0, 0, 0] under each baseline, and what malformed turns change."""

import numpy as np
import pytest

from milepost.learner.credit.assignment import INVALID, CreditGroup, CreditTrajectory, CreditTurn
from milepost.learner.credit.baseline import reward_std, trajectory_advantages
from milepost.learner.credit.strategies.registry import build
from milepost.learner.credit.strategies.starpo import StarPOConfig


def trajectory(reward: float, *, valid: int = 1, invalid: int = 0) -> CreditTrajectory:
    """The last valid turn earns `reward`, every other turn nothing."""
    flags = [True] * invalid + [False] * valid
    turns = tuple(
        CreditTurn("A", INVALID if bad else "x", "A", reward if t == len(flags) - 1 else 0.0, bad, num_tokens=4)
        for t, bad in enumerate(flags)
    )
    return CreditTrajectory("success" if reward > 0 else "failure", turns)


def group(*trajectories: CreditTrajectory) -> CreditGroup:
    return CreditGroup("g", trajectories)


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        ("grpo", [1.5, -0.5, -0.5, -0.5]),
        ("rloo", [1.0, -1 / 3, -1 / 3, -1 / 3]),
        ("dr_grpo", [0.75, -0.25, -0.25, -0.25]),
    ],
)
def test_one_success_of_four_under_each_baseline(baseline: str, expected: list[float]) -> None:
    strategy = build(StarPOConfig(baseline=baseline))
    credit = strategy.assign(group(trajectory(1.0), trajectory(0.0), trajectory(0.0), trajectory(0.0)))
    np.testing.assert_allclose(credit.traj_adv, expected, rtol=1e-12)


def test_malformed_turns_cost_their_penalty_over_the_deviation_of_the_returns() -> None:
    strategy = build(StarPOConfig())
    played = group(trajectory(1.0), trajectory(0.0), trajectory(0.0, invalid=2), trajectory(0.0))
    credit = strategy.assign(played)
    # Returns: mean .25, deviation .5. Penalties: .2 and three times 0, mean .05.
    np.testing.assert_allclose(credit.traj_adv, [1.5 + 0.1, -0.5 + 0.1, -0.5 - 0.3, -0.5 + 0.1], rtol=1e-12)
    assert credit.diagnostics["reward_std"] == pytest.approx(0.5)
    assert credit.diagnostics["invalid_share"] == pytest.approx(2 / 6)


def test_one_malformed_turn_among_successes_costs_a_fraction_of_failing() -> None:
    played = [trajectory(1.0) for _ in range(7)]
    failed = build(StarPOConfig()).assign(group(*played, trajectory(0.0)))
    assert failed.traj_adv[-1] == pytest.approx(-2.4749, abs=1e-4)
    malformed = build(StarPOConfig()).assign(group(*played, trajectory(1.0, invalid=1)))
    # .1 less its mean .0125, over .5: the deviation of a group of which half succeeded.
    assert malformed.traj_adv[-1] == pytest.approx(-0.175)


@pytest.mark.parametrize(("reward", "cost"), [(0.002, 0.1), (1.0, 0.1), (10.0, 0.01)])
def test_a_penalty_is_worth_its_share_of_the_largest_return(reward: float, cost: float) -> None:
    credit = build(StarPOConfig()).assign(group(trajectory(reward), trajectory(reward, invalid=1)))
    assert credit.traj_adv.tolist() == pytest.approx([cost, -cost])


def test_the_size_of_the_penalty_is_configured() -> None:
    played = group(trajectory(0.0, invalid=1), trajectory(0.0))
    harsh = build(StarPOConfig(baseline="dr_grpo", invalid_penalty=0.5)).assign(played)
    assert harsh.traj_adv.tolist() == pytest.approx([-0.25, 0.25])
    free = build(StarPOConfig(invalid_penalty=0.0)).assign(played)
    assert free.traj_adv.tolist() == [0.0, 0.0]


def test_every_turn_of_a_long_trajectory_gets_the_same_weighted_advantage() -> None:
    strategy = build(StarPOConfig(w_trajectory=2.0))
    credit = strategy.assign(group(trajectory(1.0, valid=9), trajectory(0.0)))
    # Once per trajectory: the nine turns don't move the mean of the two returns.
    np.testing.assert_allclose(credit.total[0], [2 * 0.5 / 0.5**0.5] * 9)
    np.testing.assert_allclose(credit.total[1], [-2 * 0.5 / 0.5**0.5])


@pytest.mark.parametrize("baseline", ["grpo", "rloo", "dr_grpo"])
@pytest.mark.parametrize("rewards", [[0.7], [0.1] * 3, [0.1 + 0.2, 0.3], [0.3 - 0.1 * 3, 0.0], [-5.0] * 7])
def test_equal_returns_give_exactly_zero(baseline: str, rewards: list[float]) -> None:
    advantages = trajectory_advantages(np.array(rewards), baseline=baseline)
    assert advantages.tolist() == [0.0] * len(rewards)
    assert reward_std(np.array(rewards)) == 0.0


def test_a_small_real_spread_is_normalised_without_an_epsilon() -> None:
    advantages = trajectory_advantages(np.array([1e-6, 0.0]), baseline="grpo")
    np.testing.assert_allclose(advantages, [0.5**0.5, -(0.5**0.5)], rtol=1e-9)
