"""Potential-based shaping by hand, its telescoping, and what a terminal potential that is not 0 would do."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from milepost.learner.credit.assignment import INVALID, CreditGroup, CreditTrajectory, CreditTurn, Need, PastTransition
from milepost.learner.credit.gae import discounted_sums
from milepost.learner.credit.scaling import scaled
from milepost.learner.credit.strategies.pbrs import PBRS, PBRSConfig, Potential, shaped_returns, shaping
from tests.learner.credit.toy4 import toy4

REWARDS, POTENTIAL = np.array([0.0, 0.0, 1.0]), np.array([0.2, 0.5, 0.9])


def walk(outcome: str, *progress: float, reward: float = 0.0, invalid: tuple[int, ...] = ()) -> CreditTrajectory:
    """Through s0, s1, ... with the progress after each turn; the last turn earns the reward."""
    last = len(progress) - 1
    return CreditTrajectory(
        outcome,
        tuple(
            CreditTurn(
                f"s{t}",
                INVALID if t in invalid else "x",
                f"s{t + 1}",
                reward if t == last else 0.0,
                t in invalid,
                num_tokens=1,
                progress=p,
                value=p / 2,
            )
            for t, p in enumerate(progress)
        ),
    )


def test_the_worked_example_of_shaping_rewards_and_returns() -> None:
    np.testing.assert_allclose(shaping(np.append(POTENTIAL, 0.0), gamma=0.9), [0.25, 0.31, -0.9], atol=1e-12)
    np.testing.assert_allclose(discounted_sums(REWARDS, rate=0.9), [0.81, 0.9, 1.0], atol=1e-12)
    np.testing.assert_allclose(shaped_returns(REWARDS, POTENTIAL, gamma=0.9), [0.61, 0.4, 0.1], atol=1e-12)


def test_a_terminal_potential_that_is_not_zero_shifts_returns_by_more_than_the_state() -> None:
    biased = discounted_sums(REWARDS + shaping(np.append(POTENTIAL, 0.9), gamma=0.9), rate=0.9)
    shift = biased - discounted_sums(REWARDS, rate=0.9)
    np.testing.assert_allclose(shift, [0.4561, 0.229, -0.09], atol=1e-12)
    # Beyond -Phi(s_t), the shift depends on how far the end is.
    np.testing.assert_allclose(shift + POTENTIAL, 0.9 * np.array([0.9**3, 0.9**2, 0.9]), atol=1e-12)


numbers = st.floats(-10, 10)


@given(pairs=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=40), gamma=st.floats(0.01, 1))
def test_shaped_returns_telescope_to_the_return_less_the_states_potential(
    pairs: list[tuple[float, float]], gamma: float
) -> None:
    rewards, potential = (np.array(x) for x in zip(*pairs, strict=True))
    got = shaped_returns(rewards, potential, gamma=gamma)
    np.testing.assert_allclose(got, discounted_sums(rewards, rate=gamma) - potential, atol=1e-8)


def test_progress_counts_from_the_turn_before() -> None:
    config = PBRSConfig(potential="progress", gamma=0.5)
    credit = PBRS(config).assign(CreditGroup("g", (walk("success", 0.25, 0.75, 1.0, reward=1.0),)))
    # Returns .25, .5, 1 less what was reached before each turn: 0, .25, .75.
    assert credit.step_adv[0].tolist() == [0.25, 0.25, 0.25]
    assert credit.coverage[0].tolist() == [1, 1, 1]
    assert credit.state_value == {}


@pytest.mark.parametrize("outcome", ["success", "failure", "truncated"])
def test_progress_lost_at_the_end_is_paid_back_however_it_ended(outcome: str) -> None:
    config = PBRSConfig(potential="progress", gamma=1.0)
    credit = PBRS(config).assign(CreditGroup("g", (walk(outcome, 0.5, 0.75),)))
    assert credit.step_adv[0].tolist() == [0.0, -0.5]


def test_the_graphs_potential_is_the_discounted_probability_of_success() -> None:
    # Values of the closure at beta .98; returns of T1: .98, 1; of T3: .9604, .98, 1; of the others 0.
    a, b, c = 0.474295, 0.730802, 0.237148
    credit = PBRS(PBRSConfig()).assign(toy4())
    assert credit.state_value == pytest.approx({"A": a, "B": b, "C": c}, abs=5e-7)
    expected = ([0.98 - a, 1 - b], [-a, -b, -c], [0.9604 - a, 0.98 - c, 1 - b], [-a, -c, -c])
    for got, want in zip(credit.step_adv, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    for total, step, trajectory in zip(credit.total, credit.step_adv, credit.traj_adv, strict=True):
        np.testing.assert_allclose(total, trajectory + step)


def test_a_group_without_success_promises_and_earns_nothing() -> None:
    credit = PBRS(PBRSConfig()).assign(CreditGroup("g", (walk("failure", 0.1, 0.2), walk("truncated", 0.3))))
    assert set(credit.state_value.values()) == {0.0}
    assert [x.tolist() for x in credit.total] == [[0.0, 0.0], [0.0]]
    assert credit.value_targets is None


def test_a_critics_values_serve_as_a_potential() -> None:
    config = PBRSConfig(potential="value", gamma=1.0, w_trajectory=0.0, w_step=2.0)
    credit = PBRS(config).assign(CreditGroup("g", (walk("success", 0.5, 1.0, reward=1.0), walk("failure", 0.25))))
    assert [x.tolist() for x in credit.total] == [[1.5, 1.0], [-0.25]]
    assert credit.state_value == {"s0": 0.1875, "s1": 0.5}
    assert credit.value_targets is not None  # the returns: 1 on the way to success, 0 for the failure
    assert [[x.tolist() for x in turns] for turns in credit.value_targets] == [[[1.0], [1.0]], [[0.0]]]


def test_an_untrained_critic_does_not_blow_up_a_batch_of_successes() -> None:
    # Values near 0 leave returns of .94 to 1: all alike, so nothing but their differences says anything.
    group = CreditGroup("g", tuple(walk("success", *[0.01 * k] * 4, reward=1.0) for k in range(4)))
    strategy = PBRS(PBRSConfig(potential="value"))
    (credit,) = scaled([strategy.assign(group)], [[np.ones(4)] * 4], strategy.scaling)
    totals = np.concatenate(credit.total)
    assert totals.mean() == pytest.approx(0.0, abs=1e-9)
    assert np.abs(totals).max() < 3


def test_an_invalid_turn_pays_from_its_own_reward() -> None:
    config = PBRSConfig(potential="progress", gamma=0.5, invalid_penalty=0.5)
    credit = PBRS(config).assign(CreditGroup("g", (walk("failure", 0.0, 0.0, 0.0, invalid=(1,)),)))
    assert credit.step_adv[0].tolist() == [-0.25, -0.5, 0.0]


@pytest.mark.parametrize(("potential", "needs"), [("graph", set()), ("progress", {"progress"}), ("value", {"critic"})])
def test_a_strategy_requires_what_its_potential_reads(potential: Potential, needs: set[Need]) -> None:
    assert PBRS(PBRSConfig(potential=potential)).requires == needs


@pytest.mark.parametrize("potential", ["progress", "value"])
def test_a_turn_without_what_the_potential_reads_is_refused_by_name(potential: Potential) -> None:
    good = walk("failure", 0.1, 0.2)
    turns = (good.turns[0], msgspec.structs.replace(good.turns[1], progress=None, value=None))
    group = CreditGroup("lake-7", (good, CreditTrajectory("failure", turns)))
    with pytest.raises(ValueError, match=f"group lake-7, trajectory 1, turn 1: no {potential}; "):
        PBRS(PBRSConfig(potential=potential)).assign(group)


def test_an_undiscounted_graph_is_refused() -> None:
    with pytest.raises(ValidationError, match="choose gamma < 1"):
        PBRSConfig(potential="graph", gamma=1.0)
    assert PBRSConfig(potential="progress", gamma=1.0).gamma == 1.0


def test_a_history_serves_the_graph_alone() -> None:
    with pytest.raises(ValidationError, match="no effect on potential progress"):
        PBRSConfig(potential="progress", history_decay=0.5)
    past = (PastTransition("s0", "a", None, True, 4.0),)
    lost = walk("failure", 0.1)
    alone, told = (PBRS(PBRSConfig()).assign(CreditGroup("g", (lost,), history=h)) for h in ((), past))
    assert alone.step_adv[0].tolist() == [0.0]
    # s0 was won four times of five: Phi = .98 * .8, and this attempt earned nothing
    assert told.step_adv[0] == pytest.approx([-0.784])
