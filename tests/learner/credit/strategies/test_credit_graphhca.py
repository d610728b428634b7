"""GraphHCA: the worked example, and what its comparison of realised transitions does."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.learner.credit.assignment import Credit, CreditGroup, PastTransition
from milepost.learner.credit.graph import build_graph, solve_values
from milepost.learner.credit.history import transitions
from milepost.learner.credit.strategies.graphhca import GraphHCA, GraphHCAConfig, log_changes
from milepost.learner.credit.strategies.starpo import StarPO, StarPOConfig
from tests.learner.credit.random_groups import assert_finite, groups, path, unhurried
from tests.learner.credit.toy4 import assert_turns_equal, toy4


def assign(group: CreditGroup, **settings: object) -> Credit:
    return GraphHCA(GraphHCAConfig(**settings)).assign(group)


def test_the_probability_of_success_matches_the_worked_example() -> None:
    assert assign(toy4()).state_value == pytest.approx({"A": 0.4377, "B": 0.7026, "C": 0.2189}, abs=5e-5)


def test_the_changes_of_its_logarithm_match_the_worked_example() -> None:
    graph = build_graph(toy4())
    change = log_changes(graph, solve_values(graph, beta=0.95).value, reward=graph.won, floor=0.01)
    pairs, targets = list(graph.pair_index), [*graph.states, "goal", "fail"]
    edges = [(*pairs[pair], targets[target]) for pair, target in zip(graph.edge_pair, graph.edge_target, strict=True)]
    assert dict(zip(edges, change, strict=True)) == pytest.approx(
        {
            ("A", "x", "B"): 0.4733,
            ("A", "y", "C"): -0.6931,
            ("B", "p", "goal"): 0.3529,
            ("B", "q", "C"): -1.1664,
            ("C", "r", "B"): 1.1664,
            ("C", "w", "C"): 0.0,
            ("C", "w", "fail"): -3.0858,
        },
        abs=6e-5,
    )


def test_step_advantages_match_the_worked_example() -> None:
    # Without the epsilon of the public code, which turns .57735 into .5773.
    expected = ([0.8660, 0.5774], [0.8660, -1.1547, -0.8449], [-0.8660, 1.1136, 0.5774], [-0.8660, 0.5763, -0.8449])
    credit = assign(toy4())
    assert_turns_equal(credit.step_adv, expected)
    assert [covered.tolist() for covered in credit.coverage] == [[1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]]


def test_totals_add_the_trajectory_advantage_once() -> None:
    credit = assign(toy4(), w_step=2.0)
    assert_turns_equal(credit.total[1:2], ([0.8660, -3.1754, -2.5559],))


def test_a_useless_self_loop_looks_good_beside_its_truncated_twin() -> None:
    # The fault we keep: one action in one state, +.576 in the middle of T4 and -.845 at its end.
    loop, end = assign(toy4()).step_adv[3][1:]
    assert loop > 0 > end


def test_the_floor_sets_how_far_a_failure_falls() -> None:
    graph = build_graph(toy4())
    phi = solve_values(graph, beta=0.95).value
    falls = [log_changes(graph, phi, reward=graph.won, floor=floor)[-1] for floor in (0.1, 0.01, 0.001)]
    np.testing.assert_allclose(falls, [-0.7832, -3.0858, -5.3884], atol=6e-5, rtol=0)


def test_a_single_visit_and_equal_changes_earn_exactly_nothing() -> None:
    # A twice by ways of equal length, each state behind it once.
    ways = (path("success", ("A", "x", "B"), ("B", "x", "D")), path("success", ("A", "y", "C"), ("C", "x", "D")))
    credit = assign(CreditGroup("g", ways))
    assert [steps.tolist() for steps in credit.step_adv] == [[0.0, 0.0], [0.0, 0.0]]
    assert [covered.tolist() for covered in credit.coverage] == [[1, 0], [1, 0]]


def test_a_history_moves_the_estimate_and_is_not_compared_with() -> None:
    # Phi(B) = .5 * 1/2 with one past win; A-x gains log(.25 / .0625), A-y falls to the floor: +-1/sqrt(2) of two.
    group = CreditGroup("g", (path("failure", ("A", "x", "B"), ("B", "q", "D")), path("failure", ("A", "y", "C"))))
    assert not np.any(np.concatenate(assign(group).step_adv))
    told = assign(replace(group, history=(PastTransition("B", "p", None, True, 1.0),)), beta=0.5)
    assert told.state_value == pytest.approx({"A": 0.0625, "B": 0.25})
    np.testing.assert_allclose(np.concatenate(told.step_adv), [0.5**0.5, 0.0, -(0.5**0.5)])
    assert [covered.tolist() for covered in told.coverage] == [[1, 0], [1]]


@unhurried
@given(group=groups(outcomes=("failure", "truncated")))
def test_a_group_without_success_earns_no_step_credit(group: CreditGroup) -> None:
    assert not np.any(np.concatenate(assign(group).step_adv))


@unhurried
@given(group=groups())
def test_step_credit_sums_to_zero_over_the_visits_of_a_state(group: CreditGroup) -> None:
    credit = assign(group)
    turns = [turn for trajectory in group.trajectories for turn in trajectory.turns]
    steps = np.concatenate(credit.step_adv)
    for state in {turn.anchor for turn in turns}:
        assert abs(sum(a for turn, a in zip(turns, steps, strict=True) if turn.anchor == state)) < 1e-9


@unhurried
@given(group=groups())
def test_without_a_step_weight_it_is_starpo(group: CreditGroup) -> None:
    plain = StarPO(StarPOConfig()).assign(group)
    for have, want in zip(assign(group, w_step=0.0).total, plain.total, strict=True):
        np.testing.assert_array_equal(have, want)


@unhurried
@given(data=st.data(), group=groups(), earlier=groups())
def test_the_order_of_the_trajectories_does_not_matter(
    data: st.DataObject, group: CreditGroup, earlier: CreditGroup
) -> None:
    group = replace(group, history=transitions(earlier))
    order = data.draw(st.permutations(range(len(group.trajectories))))
    credit = assign(group)
    assert_finite(credit)
    other = assign(replace(group, trajectories=tuple(group.trajectories[i] for i in order)))
    for position, i in enumerate(order):
        np.testing.assert_array_equal(other.step_adv[position], credit.step_adv[i])
