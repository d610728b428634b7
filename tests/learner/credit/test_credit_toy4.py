"""The shared group TOY-4 under the default strategy and under StarPO."""

import numpy as np
import pytest

from milepost.learner.credit.assignment import Credit
from milepost.learner.credit.graph import build_graph, solve_values
from milepost.learner.credit.strategies.crbc import CRBCConfig
from milepost.learner.credit.strategies.registry import build
from milepost.learner.credit.strategies.starpo import StarPOConfig
from tests.learner.credit.toy4 import assert_turns_equal, toy4

STEP = ([1.0, 0.7071], [1.0, -1.4142, -0.5774], [-1.0, 1.7321, 0.7071], [-1.0, -0.5774, -0.5774])
TOTAL = ([5.8660, 4.4016], [4.1340, -7.9371, -3.7528], [-4.1340, 9.5263, 4.4016], [-5.8660, -3.7528, -3.7528])


@pytest.fixture(scope="module")
def credit() -> Credit:
    """With the published settings, by which a trajectory that was cut off has failed."""
    return build(CRBCConfig(sigma_min=0.1, truncation="failure")).assign(toy4())


def test_a_trajectory_that_was_cut_off_leads_on_to_where_it_was_by_default() -> None:
    # V(C) = .98 (V(B) / 4 + 3 V(C) / 4), V(B) = .98 (2 + V(C)) / 3, V(A) = .98 (V(B) + V(C)) / 2.
    credit = build(CRBCConfig()).assign(toy4())
    assert credit.state_value == pytest.approx({"A": 0.882689, "B": 0.936025, "C": 0.865381}, abs=5e-7)
    graph = build_graph(toy4(), truncation="bootstrap")
    values = solve_values(graph, beta=0.98)
    np.testing.assert_allclose(values.sigma, [0.034615, 0.062191, 0.029978], atol=5e-7, rtol=0)
    # All sigmas are over .01; of two actions, how far they are apart does not matter then.
    assert_turns_equal(credit.step_adv, STEP)
    assert_turns_equal(credit.total, TOTAL)


def test_the_trajectory_advantage_is_the_return_in_units_of_the_groups_deviation(credit: Credit) -> None:
    np.testing.assert_allclose(credit.traj_adv, [0.8660, -0.8660, 0.8660, -0.8660], atol=5e-5, rtol=0)


def test_state_values_solve_the_closure(credit: Credit) -> None:
    assert list(credit.state_value) == ["A", "B", "C"]
    assert credit.state_value == pytest.approx({"A": 0.474295, "B": 0.730802, "C": 0.237148}, abs=5e-7)


def test_action_values_and_scales_follow_from_the_state_values() -> None:
    graph = build_graph(toy4())
    values = solve_values(graph, beta=0.98)
    q = {pair: values.q[row] for pair, row in graph.pair_index.items()}
    expected = {
        ("A", "x"): 0.7162,
        ("A", "y"): 0.2324,
        ("B", "p"): 0.98,
        ("B", "q"): 0.2324,
        ("C", "r"): 0.7162,
        ("C", "w"): 0.0775,
    }
    assert q == pytest.approx(expected, abs=5e-5)
    np.testing.assert_allclose(values.sigma, [0.24189, 0.35242, 0.27657], atol=5e-6, rtol=0)


def test_transitions_are_counted_over_all_trajectories() -> None:
    graph = build_graph(toy4())
    pairs = list(graph.pair_index)
    targets = [*graph.states, "success", "no success"]
    counts = {
        (*pairs[pair], targets[target]): n
        for pair, target, n in zip(graph.edge_pair, graph.edge_target, graph.edge_count, strict=True)
    }
    assert counts == {
        ("A", "x", "B"): 2,
        ("A", "y", "C"): 2,
        ("B", "p", "success"): 2,
        ("B", "q", "C"): 1,
        ("C", "r", "B"): 1,
        ("C", "w", "C"): 1,
        ("C", "w", "no success"): 2,
    }
    assert graph.state_visits.tolist() == [4, 3, 4]
    assert graph.num_actions.tolist() == [2, 2, 2]


def test_step_advantages_match_the_worked_example(credit: Credit) -> None:
    assert_turns_equal(credit.step_adv, STEP)
    assert all(covered.tolist() == [1] * len(covered) for covered in credit.coverage)


def test_totals_weigh_the_trajectory_once_and_the_step_five_times(credit: Credit) -> None:
    assert_turns_equal(credit.total, TOTAL)


def test_a_good_first_action_is_rewarded_in_a_trajectory_that_fails(credit: Credit) -> None:
    failed, won = credit.total[1][0], credit.total[2][0]
    assert failed > 0 > won


def test_a_useless_self_loop_is_punished_like_every_other_occurrence_of_its_action(credit: Credit) -> None:
    assert credit.step_adv[3][1] == credit.step_adv[3][2] == credit.step_adv[1][2] < 0


def test_starpo_gives_every_turn_its_trajectorys_advantage() -> None:
    credit = build(StarPOConfig()).assign(toy4())
    high, low = [0.8660], [-0.8660]
    assert_turns_equal(credit.total, (high * 2, low * 3, high * 3, low * 3))
    assert credit.state_value == {}


def test_diagnostics_describe_the_group_and_its_graph(credit: Credit) -> None:
    # The pairs of C: r once, w three times; w leads to C every time it is seen, so nothing is aliased.
    assert credit.diagnostics == pytest.approx(
        {
            "success_rate": 0.5,
            "reward_mean": 0.5,
            "reward_std": 0.57735,
            "invalid_share": 0.0,
            "states": 3.0,
            "coverage": 1.0,
            "singleton_share": 0.0,
            "aliased_share": 0.0,
            "step_adv_rms": 1.0,
            "step_adv_max": 1.73205,
        },
        abs=1e-5,
    )
