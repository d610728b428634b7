"""The STAPO reconstruction by hand: which turns stand out, and what is said about them and only them."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.learner.credit.assignment import CreditGroup, CreditTrajectory, CreditTurn
from milepost.learner.credit.strategies.gigpo import GiGPO, GiGPOConfig
from milepost.learner.credit.strategies.stapo import STAPO, STAPOConfig, entropy_outliers
from milepost.learner.credit.strategies.starpo import StarPO, StarPOConfig
from tests.learner.credit.toy4 import toy4

WORKED = (0.50, 0.60, 0.55, 0.58, 1.40)


def turn(entropy: float | None, *, anchor: str = "A", gain: float | None = None, reward: float = 0.0) -> CreditTurn:
    return CreditTurn(anchor, "x", "end", reward, False, num_tokens=3, entropy=entropy, history_gain=gain)


def group(*turns: CreditTurn) -> CreditGroup:
    """One turn per trajectory, as if all of them ended in it."""
    return CreditGroup("g", tuple(CreditTrajectory("failure", (t,)) for t in turns))


def measured(entropies: tuple[float, ...], *, gain: float | None = 0.0) -> CreditGroup:
    return group(*(turn(h, gain=gain) for h in entropies))


def flat(arrays: tuple[np.ndarray, ...]) -> list[float]:
    return [float(x) for array in arrays for x in array]


def test_the_one_turn_above_the_fence_stands_out() -> None:
    # n = [-.226, -.126, -.176, -.146, .674]: quartiles -.176 and -.126, fence -.126 + 1.5 * .05 = -.051.
    outliers = entropy_outliers(measured(WORKED), fence=1.5)
    assert outliers.is_outlier.tolist() == [False, False, False, False, True]
    np.testing.assert_allclose(outliers.excess, [0, 0, 0, 0, 0.674 + 0.051], atol=1e-12)


def test_neglected_history_and_excess_entropy_cost_the_outlier_only() -> None:
    # Mean log-prob -1.2 with the history and -1.1 without it: the history made the action less likely.
    played = group(*(turn(h, gain=-1.2 - -1.1) for h in WORKED))
    aware = STAPO(STAPOConfig(w_independent=0.0)).assign(played)
    np.testing.assert_allclose(flat(aware.step_adv), [0, 0, 0, 0, 0.01 * -0.1], atol=1e-12)
    both = STAPO(STAPOConfig()).assign(played)
    np.testing.assert_allclose(flat(both.total), [0, 0, 0, 0, 0.01 * -0.1 - 0.01 * 0.725], atol=1e-12)
    assert both.diagnostics["outlier_share"] == pytest.approx(0.2)
    assert both.diagnostics["selective_max"] == pytest.approx(0.00825)


def test_history_that_made_the_action_more_likely_is_rewarded() -> None:
    played = group(*(turn(h, gain=0.5) for h in WORKED))
    credit = STAPO(STAPOConfig(w_aware=0.1, w_independent=0.0)).assign(played)
    np.testing.assert_allclose(flat(credit.total), [0, 0, 0, 0, 0.05], atol=1e-12)


def test_a_hard_state_alone_makes_nobody_an_outlier() -> None:
    easy, hard = (0.1, 0.11, 0.09, 0.1), (2.0, 2.01, 1.99, 2.0)
    played = group(*(turn(h, anchor="A") for h in easy), *(turn(h, anchor="B") for h in hard))
    assert not np.any(entropy_outliers(played, fence=1.5).is_outlier)


def test_a_state_met_once_is_compared_with_all_turns() -> None:
    # The mean of all five is .726, as in the worked example; B is met once, so its turn keeps n = .674.
    # Without it, A has the mean .5575: n = [-.0575, .0425, -.0075, .0225]; quartiles -.0075 and .0425.
    played = group(*(turn(h) for h in WORKED[:4]), turn(WORKED[4], anchor="B", gain=0.0))
    outliers = entropy_outliers(played, fence=1.5)
    assert outliers.is_outlier.tolist() == [False] * 4 + [True]
    assert outliers.excess[4] == pytest.approx(0.674 - (0.0425 + 1.5 * 0.05))
    assert STAPO(STAPOConfig()).assign(played).coverage[4].tolist() == [1]


def test_equal_entropies_do_not_stand_out_by_rounding() -> None:
    played = group(*(turn(0.1) for _ in range(3)), turn(0.1, anchor="B"))
    credit = STAPO(STAPOConfig(fence=0.0)).assign(played)
    assert credit.diagnostics["outlier_share"] == 0.0
    assert flat(credit.total) == [0.0] * 4


def test_only_outliers_need_a_history_gain() -> None:
    played = group(*(turn(h) for h in WORKED[:4]), turn(WORKED[4], gain=0.0))
    assert STAPO(STAPOConfig()).assign(played).diagnostics["outlier_share"] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="group g, trajectory 4, turn 0: no history_gain; the learner must compute it"):
        STAPO(STAPOConfig()).assign(measured(WORKED, gain=None))


def test_a_turn_without_entropy_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="group g, trajectory 1, turn 0: no entropy; the learner must compute it"):
        STAPO(STAPOConfig()).assign(group(turn(0.5), turn(None)))


def with_entropy(played: CreditGroup, entropies: list[float]) -> CreditGroup:
    remaining = iter(entropies)
    return CreditGroup(
        played.task_id,
        tuple(
            CreditTrajectory(
                t.outcome,
                tuple(msgspec.structs.replace(u, entropy=next(remaining), history_gain=0.3) for u in t.turns),
            )
            for t in played.trajectories
        ),
    )


def test_without_outliers_it_is_gigpo() -> None:
    plain = with_entropy(toy4(), [0.5] * 11)
    got, want = STAPO(STAPOConfig()).assign(plain), GiGPO(GiGPOConfig()).assign(plain)
    np.testing.assert_array_equal(flat(got.total), flat(want.total))
    assert got.total[0] == pytest.approx([0.8660 + 0.9098, 0.8660 + 0.5773], abs=2e-4)


@settings(max_examples=50)
@given(entropies=st.lists(st.floats(0, 5), min_size=11, max_size=11))
def test_without_a_step_weight_it_is_starpo(entropies: list[float]) -> None:
    played = with_entropy(toy4(), entropies)
    credit = STAPO(STAPOConfig(w_step=0.0)).assign(played)
    assert flat(credit.total) == flat(StarPO(StarPOConfig()).assign(played).total)


@settings(max_examples=50)
@given(entropies=st.lists(st.floats(0, 5), min_size=11, max_size=11), fence=st.floats(0, 3))
def test_turns_within_the_fence_are_not_touched(entropies: list[float], fence: float) -> None:
    played = with_entropy(toy4(), entropies)
    outliers = entropy_outliers(played, fence=fence)
    loud = STAPO(STAPOConfig(fence=fence, w_aware=5.0, w_independent=7.0)).assign(played)
    touched = np.array(flat(loud.step_adv)) - np.array(flat(GiGPO(GiGPOConfig()).assign(played).step_adv))
    assert not np.any(touched[~outliers.is_outlier])
    assert np.all(outliers.excess >= 0)
    np.testing.assert_allclose(touched, outliers.is_outlier * 5.0 * 0.3 - 7.0 * outliers.excess, atol=1e-9)


def test_turns_that_are_alone_in_their_state_stand_out_alike_in_any_order() -> None:
    # The floating-point mean of these seven depends on their order, in the last bit.
    entropies = (0.1, 0.2, 0.3, 0.7, 1.4, 5.9, 0.1)
    alone = [turn(h, anchor=str(i)) for i, h in enumerate(entropies)]
    found = set()
    for start in range(len(alone)):
        moved = alone[start:] + alone[:start]
        found.add(max(entropy_outliers(group(*moved), fence=0.1).excess))
    assert len(found) == 1
    assert found.pop() > 0
