"""GraphGPO: distances to success over all known paths, by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from milepost.learner.credit.assignment import CreditGroup, CreditTrajectory, CreditTurn, PastTransition
from milepost.learner.credit.strategies.graphgpo import GraphGPO, GraphGPOConfig
from tests.learner.credit.toy4 import assert_turns_equal, toy4

STEP = ([0.8660, 0.5774], [0.8660, -1.1547, -0.5], [-0.8660, 1.5, 0.5774], [-0.8660, -0.5, -0.5])


def path(outcome: str, states: str) -> CreditTrajectory:
    """A trajectory whose turns lead from each state to the next; the last state is where it ends."""
    turns = tuple(CreditTurn(s, f"to {n}", n, 0.0, False, num_tokens=1) for s, n in itertools.pairwise(states))
    return CreditTrajectory(outcome, turns)


def step_credit(*trajectories: CreditTrajectory, **config: object) -> list[list[float]]:
    credit = GraphGPO(GraphGPOConfig(**config)).assign(CreditGroup("g", trajectories))
    return [steps.tolist() for steps in credit.step_adv]


def test_step_advantages_match_the_worked_example() -> None:
    credit = GraphGPO(GraphGPOConfig()).assign(toy4())
    assert_turns_equal(credit.step_adv, STEP)
    assert all(covered.tolist() == [1] * len(covered) for covered in credit.coverage)
    # d(B) = 1, d(A) = d(C) = 2.
    assert credit.state_value == pytest.approx({"A": 0.01, "B": 0.1, "C": 0.01})
    # The published factor 10 cancels in a standardised reward: with it R(A -> B) = 1 and R(A -> C) = .1.
    assert [10 * credit.state_value[s] for s in "BC"] == pytest.approx([1.0, 0.1])
    assert credit.diagnostics["unreachable_share"] == 0.0


def test_a_good_first_action_is_rewarded_in_a_trajectory_that_fails() -> None:
    credit = GraphGPO(GraphGPOConfig()).assign(toy4())
    assert credit.step_adv[1][0] > 0 > credit.step_adv[2][0]


def test_a_success_of_earlier_groups_shortens_the_way() -> None:
    # TIGPO: with C -> success known, B and C are both one step away and A's two actions are equally good.
    credit = GraphGPO(GraphGPOConfig()).assign(toy4(history=(PastTransition("C", "k", None, True, 0.25),)))
    assert credit.state_value == pytest.approx({"A": 0.01, "B": 0.1, "C": 0.1})
    assert 10 * credit.state_value["C"] == pytest.approx(1.0), "R(A -> C) = 1 with the published factor"
    assert [steps[0] for steps in credit.step_adv] == [0.0] * 4
    assert [int(covered[0]) for covered in credit.coverage] == [1] * 4


def test_history_helps_a_group_without_success_and_never_enters_a_mean() -> None:
    failures = (path("failure", "AB"), path("failure", "AC"))
    history = (PastTransition("A", "to B", "B", False, 9.0), PastTransition("B", "go", None, True, 1.0))
    credit = GraphGPO(GraphGPOConfig()).assign(CreditGroup("g", failures, history))
    # Two visits of A, whatever the history counts: one step above the mean, one below.
    np.testing.assert_allclose(np.concatenate(credit.step_adv), [0.5**0.5, -(0.5**0.5)], rtol=1e-12)
    assert credit.state_value == pytest.approx({"A": 0.01})


def test_a_group_without_success_earns_no_step_credit() -> None:
    failures = tuple(CreditTrajectory("failure", t.turns) for t in toy4().trajectories)
    credit = GraphGPO(GraphGPOConfig()).assign(CreditGroup("g", failures))
    assert [steps.tolist() for steps in credit.step_adv] == [[0.0] * 2, [0.0] * 3, [0.0] * 3, [0.0] * 3]
    assert credit.state_value == {"A": 0.0, "B": 0.0, "C": 0.0}
    assert credit.diagnostics["unreachable_share"] == 1.0


def test_of_two_ways_to_succeed_the_shorter_earns_more() -> None:
    got = step_credit(path("success", "AZ"), path("success", "ABCZ"))
    np.testing.assert_allclose(got[0], [0.5**0.5], rtol=1e-12)
    np.testing.assert_allclose(got[1], [-(0.5**0.5), 0.0, 0.0], rtol=1e-12)


def test_a_dead_end_lies_one_step_beyond_the_farthest_state_with_a_way() -> None:
    # d(B) = 1, d(A) = 2, D has no way: d(D) = 3. From A: .1, .1 and .001 with omega = .1.
    got = step_credit(path("success", "ABZ"), path("failure", "AB"), path("failure", "AD"))
    values = np.array([0.1, 0.1, 0.001])
    np.testing.assert_allclose([steps[0] for steps in got], (values - values.mean()) / values.std(ddof=1), rtol=1e-9)
    credit = GraphGPO(GraphGPOConfig()).assign(CreditGroup("g", (path("success", "ABZ"), path("failure", "ADE"))))
    assert credit.state_value == pytest.approx({"A": 0.01, "B": 0.1, "D": 0.0})
    assert credit.diagnostics["unreachable_share"] == pytest.approx(1 / 3)


def test_the_last_turn_of_a_failure_leads_to_the_state_it_really_left() -> None:
    # The time-out steps into B, from where success is known to be one step away; that is also C's only way.
    group = CreditGroup("g", (path("success", "ABZ"), path("truncated", "ACB")))
    credit = GraphGPO(GraphGPOConfig()).assign(group)
    assert credit.state_value == pytest.approx({"A": 0.01, "B": 0.1, "C": 0.01})


def test_omega_sets_how_much_second_best_is_worth() -> None:
    # From A three visits lead to d = 0, 1 and 2 (B one step, C two steps from success).
    paths = (path("success", "AZ"), path("success", "ABZ"), path("success", "ACBZ"))
    for omega in (0.1, 0.8):
        values = np.array([1.0, omega, omega**2])
        expected = (values - values.mean()) / values.std(ddof=1)
        np.testing.assert_allclose([steps[0] for steps in step_credit(*paths, omega=omega)], expected, rtol=1e-9)


def test_credit_does_not_vanish_far_from_the_goal() -> None:
    # S0 is 31 steps from success; 10 * .1^30 is far below the epsilon of the public code.
    chain = [f"S{i:02d}" for i in range(31)]
    edges = [*zip(chain, [*chain[1:], "end"], strict=True)]
    way = CreditTrajectory("success", tuple(CreditTurn(s, "go", n, 0.0, False, num_tokens=1) for s, n in edges))
    loop = CreditTrajectory("truncated", (CreditTurn("S00", "wait", "S00", 0.0, False, num_tokens=1),))
    credit = GraphGPO(GraphGPOConfig()).assign(CreditGroup("g", (way, loop)))
    assert credit.step_adv[0][0] == pytest.approx(0.5**0.5)
    assert credit.step_adv[1][0] == pytest.approx(-(0.5**0.5))


def test_success_is_a_node_of_its_own_whatever_the_last_state_is_called() -> None:
    # The success ends "in" A; passing through A is not success.
    credit = GraphGPO(GraphGPOConfig()).assign(CreditGroup("g", (path("success", "ABA"), path("failure", "BA"))))
    assert credit.state_value == pytest.approx({"A": 0.01, "B": 0.1})
    np.testing.assert_allclose([credit.step_adv[0][1], credit.step_adv[1][0]], [0.5**0.5, -(0.5**0.5)], rtol=1e-12)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["success", "failure"]), st.text("ABCD", min_size=2, max_size=7)),
        min_size=1,
        max_size=6,
    )
)
def test_the_constant_variants_of_the_paper_and_the_code_give_the_same_credit(walks: list[tuple[str, str]]) -> None:
    group = CreditGroup("g", tuple(path(outcome, states) for outcome, states in walks))
    turns = [
        (s, "SUCCESS" if outcome == "success" and t == len(states) - 2 else n)
        for outcome, states in walks
        for t, (s, n) in enumerate(itertools.pairwise(states))
    ]
    distance = {"SUCCESS": 0}
    for d in range(1, 10):
        distance |= {s: d for s, n in turns if distance.get(n) == d - 1 and s not in distance}
    beyond = max(distance.values()) + 1
    anchors, d = [s for s, _ in turns], np.array([distance.get(n, beyond) for _, n in turns])
    here = np.array([distance.get(s, beyond) for s in anchors])
    got = np.concatenate(GraphGPO(GraphGPOConfig(omega=0.5)).assign(group).step_adv)
    for rewards in (10 * 0.5**d, 3.0 * 0.5 ** (d + 2.0), 10 * 0.5 ** (d - here + 1.0)):
        for anchor in set(anchors):
            rows = [i for i, a in enumerate(anchors) if a == anchor]
            peers = rewards[rows]
            spread = len(rows) > 1 and np.ptp(peers) > 0
            expected = (peers - peers.mean()) / peers.std(ddof=1) if spread else np.zeros(len(rows))
            np.testing.assert_allclose(got[rows], expected, atol=1e-9)


@pytest.mark.parametrize("setting", [{"omega": 0.0}, {"omega": 1.0}, {"gamma": 0.9}])
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GraphGPOConfig(**setting)
