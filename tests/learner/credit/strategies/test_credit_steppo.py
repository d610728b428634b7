"""StepPO by hand: a critic's generalised advantage over turns, its targets, and the whitening of the batch."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from milepost.learner.credit.assignment import INVALID, CreditGroup, CreditTrajectory, CreditTurn
from milepost.learner.credit.gae import discounted_sums, gae
from milepost.learner.credit.scaling import scaled
from milepost.learner.credit.strategies.steppo import StepPO, StepPOConfig

REWARDS, VALUES = (0.0, 0.0, 1.0), (0.2, 0.5, 0.6)


def played(
    rewards: tuple[float, ...],
    values: tuple[float | None, ...],
    *,
    outcome: str = "success",
    invalid: tuple[int, ...] = (),
) -> CreditTrajectory:
    """A walk through the states s0, s1, ..."""
    return CreditTrajectory(
        outcome,
        tuple(
            CreditTurn(f"s{t}", INVALID if t in invalid else "x", f"s{t + 1}", r, t in invalid, num_tokens=4, value=v)
            for t, (r, v) in enumerate(zip(rewards, values, strict=True))
        ),
    )


def one(trajectory: CreditTrajectory) -> CreditGroup:
    return CreditGroup("g", (trajectory,))


def test_the_worked_example_in_advantages_and_critic_targets() -> None:
    near = StepPO(StepPOConfig(gae_lambda=0.0)).assign(one(played(REWARDS, VALUES)))
    np.testing.assert_allclose(near.total[0], [0.295, 0.094, 0.4], atol=1e-12, rtol=0)  # delta, with gamma .99
    # A_1 = .094 + .9405 * .4 and A_0 = .295 + .9405 * A_1.
    credit = StepPO(StepPOConfig()).assign(one(played(REWARDS, VALUES)))
    np.testing.assert_allclose(credit.total[0], [0.737223, 0.4702, 0.4], atol=5e-7, rtol=0)
    np.testing.assert_array_equal(credit.step_adv[0], credit.total[0])
    assert credit.coverage[0].tolist() == [1, 1, 1]
    assert credit.value_targets is not None
    assert [target.shape for target in credit.value_targets[0]] == [(1,), (1,), (1,)]
    np.testing.assert_allclose(np.concatenate(credit.value_targets[0]), [0.9372, 0.9702, 1.0], atol=5e-5, rtol=0)
    assert credit.token_total is None


def test_the_batch_is_whitened_over_turns() -> None:
    strategy = StepPO(StepPOConfig())
    credit = strategy.assign(one(played(REWARDS, VALUES)))
    (white,) = scaled([credit], [[np.array([1.0, 100.0, 3.0])]], strategy.scaling)
    np.testing.assert_allclose(white.total[0], [1.1320, -0.3687, -0.7633], atol=5e-5, rtol=0)
    assert white.value_targets is credit.value_targets


@pytest.mark.parametrize("outcome", ["success", "failure", "truncated"])
def test_nothing_follows_the_last_turn_however_it_ended(outcome: str) -> None:
    credit = StepPO(StepPOConfig()).assign(one(played((0.0,), (0.7,), outcome=outcome)))
    assert credit.total[0].tolist() == [-0.7]


def test_an_invalid_turn_pays_from_its_own_reward_and_earlier_turns_share_the_loss() -> None:
    config = StepPOConfig(gamma=0.5, gae_lambda=1.0, invalid_penalty=0.25)
    credit = StepPO(config).assign(one(played((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), outcome="failure", invalid=(1,))))
    assert credit.total[0].tolist() == [-0.125, -0.25, 0.0]


def test_the_groups_trajectory_advantage_is_reported_but_is_no_part_of_the_total() -> None:
    exact = played((1.0,), (1.0,))
    lost = played((0.0,), (0.0,), outcome="failure")
    credit = StepPO(StepPOConfig()).assign(CreditGroup("g", (exact, lost)))
    np.testing.assert_allclose(credit.traj_adv, [0.5**0.5, -(0.5**0.5)])
    assert [x.tolist() for x in credit.total] == [[0.0], [0.0]]


def test_a_states_value_is_the_critics_mean_over_its_visits() -> None:
    credit = StepPO(StepPOConfig()).assign(CreditGroup("g", (played((0.0, 1.0), (0.2, 0.9)), played((1.0,), (0.4,)))))
    assert credit.state_value == pytest.approx({"s0": 0.3, "s1": 0.9})


def test_a_turn_without_a_value_is_refused_by_name() -> None:
    group = CreditGroup("lake-7", (played((1.0,), (0.2,)), played((0.0, 1.0), (0.3, None))))
    with pytest.raises(ValueError, match="group lake-7, trajectory 1, turn 1: no value; a critic must estimate it"):
        StepPO(StepPOConfig()).assign(group)


def test_the_length_of_a_response_discounts_nothing() -> None:
    short = played(REWARDS, VALUES)
    long = CreditTrajectory("success", tuple(msgspec.structs.replace(turn, num_tokens=400) for turn in short.turns))
    strategy = StepPO(StepPOConfig())
    np.testing.assert_array_equal(strategy.assign(one(short)).total[0], strategy.assign(one(long)).total[0])


@pytest.mark.parametrize("wrong", [{"gamma": 0.0}, {"gamma": 1.1}, {"gae_lambda": -0.1}, {"w_step": 1.0}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        StepPOConfig(**wrong)


numbers = st.floats(-10, 10)


@given(
    pairs=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30),
    gamma=st.floats(0.01, 1),
    lam=st.floats(0, 1),
)
def test_every_advantage_follows_from_the_next_one(pairs: list[tuple[float, float]], gamma: float, lam: float) -> None:
    rewards, values = (np.array(x) for x in zip(*pairs, strict=True))
    advantages = gae(rewards, values, gamma=gamma, lam=lam)
    for t in range(len(pairs)):
        is_last = t == len(pairs) - 1
        following, carried = (0.0, 0.0) if is_last else (values[t + 1], advantages[t + 1])
        want = rewards[t] + gamma * following - values[t] + gamma * lam * carried
        assert advantages[t] == pytest.approx(want, abs=1e-9)


@given(pairs=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30), gamma=st.floats(0.01, 1))
def test_with_lambda_one_the_critics_target_is_the_return(pairs: list[tuple[float, float]], gamma: float) -> None:
    rewards, values = (np.array(x) for x in zip(*pairs, strict=True))
    targets = gae(rewards, values, gamma=gamma, lam=1.0) + values
    np.testing.assert_allclose(targets, discounted_sums(rewards, rate=gamma), atol=1e-9)
