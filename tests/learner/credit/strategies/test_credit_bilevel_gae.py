"""Bi-level GAE by hand: the worked example, the published demo input, and the turn without reward."""

import numpy as np
import pytest
from pydantic import ValidationError

from milepost.learner.credit.assignment import INVALID, CreditGroup, CreditTrajectory, CreditTurn
from milepost.learner.credit.gae import gae
from milepost.learner.credit.scaling import scaled
from milepost.learner.credit.strategies.bilevel_gae import BiLevelGAE, BiLevelGAEConfig


def group(*turns: tuple[float, tuple[float, ...]], invalid: tuple[int, ...] = ()) -> CreditGroup:
    """One trajectory of (reward, token values) per turn."""
    played = tuple(
        CreditTurn(
            f"s{t}",
            INVALID if t in invalid else "x",
            f"s{t + 1}",
            reward,
            t in invalid,
            num_tokens=len(values),
            value=values[0],
            token_values=values,
        )
        for t, (reward, values) in enumerate(turns)
    )
    return CreditGroup("g", (CreditTrajectory("success", played),))


WORKED = group((0.0, (0.2, 0.3)), (1.0, (0.5, 0.6)))
"""Tokens t0 t1 | environment | t3 t4; only the second turn is rewarded."""


def test_turns_pass_credit_first_and_hand_it_to_their_tokens() -> None:
    credit = BiLevelGAE(BiLevelGAEConfig()).assign(WORKED)
    # A_2 = 1 - .6; A_1 = .95 * .6 - .3 + .95 * .4.
    np.testing.assert_allclose(credit.step_adv[0], [0.65, 0.40], atol=1e-12)
    assert credit.token_total is not None
    assert credit.value_targets is not None
    np.testing.assert_allclose(credit.token_total[0], [[0.75, 0.65], [0.5, 0.4]], atol=1e-12)
    np.testing.assert_allclose(credit.value_targets[0], [[0.95, 0.95], [1.0, 1.0]], atol=1e-12)
    np.testing.assert_allclose(credit.total[0], [0.70, 0.45], atol=1e-12)
    assert credit.coverage[0].tolist() == [1, 1]
    assert credit.state_value == {"s0": 0.2, "s1": 0.5}


def test_the_batch_is_whitened_over_tokens() -> None:
    strategy = BiLevelGAE(BiLevelGAEConfig())
    (white,) = scaled([strategy.assign(WORKED)], [[np.ones(2)]], strategy.scaling)
    assert white.token_total is not None
    expected = [[1.1257, 0.4825], [-0.4825, -1.1257]]
    np.testing.assert_allclose(white.token_total[0], expected, atol=5e-5, rtol=0)
    np.testing.assert_allclose(white.total[0], np.mean(expected, axis=1), atol=5e-5, rtol=0)


def test_the_published_demo_input() -> None:
    first, second = (0.1, 0.2, 0.3, 0.4, 0.5), (0.6, 0.7, 0.8, 0.9, 1.0)
    credit = BiLevelGAE(BiLevelGAEConfig()).assign(group((1.0, first), (1.0, second)))
    assert credit.token_total is not None
    expected = [[1.85, 1.75, 1.65, 1.55, 1.45], [0.4, 0.3, 0.2, 0.1, 0.0]]
    np.testing.assert_allclose(credit.token_total[0], expected, atol=1e-12)


def test_a_turn_without_reward_still_ends_and_bootstraps() -> None:
    # Finding turn ends by their reward would merge the two turns into one sequence of four tokens.
    merged = gae(np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.2, 0.3, 0.5, 0.6]), gamma=1.0, lam=1.0)
    np.testing.assert_allclose(merged, [0.8, 0.7, 0.5, 0.4], atol=1e-12)
    credit = BiLevelGAE(BiLevelGAEConfig()).assign(WORKED)
    assert credit.token_total is not None
    np.testing.assert_allclose(np.concatenate(credit.token_total[0]), [0.75, 0.65, 0.5, 0.4], atol=1e-12)


def test_a_last_turn_without_reward_ends_the_trajectory() -> None:
    credit = BiLevelGAE(BiLevelGAEConfig()).assign(group((1.0, (0.5,)), (0.0, (0.2, 0.4))))
    assert credit.token_total is not None
    # A_2 = -.4; A_1 = 1 + .95 * .4 - .5 - .95 * .4; inside the second turn its two tokens are worth 0.
    np.testing.assert_allclose(credit.token_total[0][0], [0.5], atol=1e-12)
    np.testing.assert_allclose(credit.token_total[0][1], [-0.2, -0.4], atol=1e-12)


def test_the_rates_of_turns_and_tokens_are_separate() -> None:
    config = BiLevelGAEConfig(gamma_turn=0.5, lambda_turn=0.0, gamma_token=0.5, lambda_token=0.0)
    credit = BiLevelGAE(config).assign(WORKED)
    assert credit.token_total is not None
    # Turns: .5 * .6 - .3 = 0 and .4. Tokens before the last look one token ahead: .5 * .3 - .2 and .5 * .6 - .5.
    np.testing.assert_allclose(credit.step_adv[0], [0.0, 0.4], atol=1e-12)
    np.testing.assert_allclose(credit.token_total[0], [[-0.05, 0.0], [-0.2, 0.4]], atol=1e-12)


def test_an_invalid_turn_pays_from_its_own_reward() -> None:
    config = BiLevelGAEConfig(gamma_turn=0.5, invalid_penalty=0.25)
    credit = BiLevelGAE(config).assign(group((0.0, (0.0,)), (0.0, (0.0, 0.0)), invalid=(1,)))
    assert credit.token_total is not None
    assert [x.tolist() for x in credit.token_total[0]] == [[-0.125], [-0.25, -0.25]]


def test_a_turn_without_token_values_is_refused_by_name() -> None:
    bare = CreditTurn("A", "x", "B", 0.0, False, num_tokens=2, value=0.5)
    with pytest.raises(ValueError, match="group g, trajectory 0, turn 0: no token_values; a critic must estimate them"):
        BiLevelGAE(BiLevelGAEConfig()).assign(CreditGroup("g", (CreditTrajectory("failure", (bare,)),)))


@pytest.mark.parametrize("wrong", [{"gamma_turn": 0.0}, {"lambda_token": 1.5}, {"gamma_token": float("nan")}])
def test_rates_outside_the_unit_interval_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        BiLevelGAEConfig(**wrong)
