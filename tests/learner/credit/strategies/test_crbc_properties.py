"""What CRBC promises for every group, and its numbers on graphs with loops, ties and long paths."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.learner.credit.assignment import INVALID, CreditGroup, CreditTrajectory, CreditTurn
from milepost.learner.credit.strategies.crbc import CRBCConfig
from milepost.learner.credit.strategies.registry import build
from tests.learner.credit.random_groups import OUTCOMES, assert_finite, groups, path, unhurried, visits


@unhurried
@given(group=groups(outcomes=("failure", "truncated")))
def test_a_group_without_success_earns_no_step_credit(group: CreditGroup) -> None:
    credit = build(CRBCConfig()).assign(group)
    assert set(credit.state_value.values()) == {0.0}
    assert all(not np.any(steps) for steps in credit.step_adv)


@unhurried
@given(group=groups(outcomes=("success",)))
def test_a_group_of_successes_values_every_state(group: CreditGroup) -> None:
    credit = build(CRBCConfig()).assign(group)
    assert_finite(credit)
    assert all(0.0 < value <= 0.98 for value in credit.state_value.values())


@unhurried
@given(group=groups())
def test_a_state_with_one_action_earns_no_step_credit(group: CreditGroup) -> None:
    credit = build(CRBCConfig()).assign(group)
    actions = defaultdict(set)
    for trajectory in group.trajectories:
        for turn in trajectory.turns:
            actions[turn.anchor].add(turn.action)
    for turn, _, step, covered in visits(group, credit):
        assert covered == (len(actions[turn.anchor]) >= 2)
        assert covered or step == 0.0


@unhurried
@given(group=groups())
def test_step_credit_of_crbc_sums_to_zero_over_the_visits_of_a_state(group: CreditGroup) -> None:
    by_state = defaultdict(list)
    for turn, _, step, _ in visits(group, build(CRBCConfig()).assign(group)):
        by_state[turn.anchor].append(step)
    assert all(abs(sum(steps)) < 1e-9 for steps in by_state.values())


@unhurried
@given(group=groups())
def test_all_occurrences_of_an_action_in_a_state_share_their_credit(group: CreditGroup) -> None:
    by_pair = defaultdict(set)
    for turn, _, step, _ in visits(group, build(CRBCConfig()).assign(group)):
        by_pair[turn.anchor, turn.action].add(step)
    assert all(len(steps) == 1 for steps in by_pair.values())


@unhurried
@given(group=groups(), beta=st.sampled_from([0.5, 0.98, 0.9999]))
def test_a_states_value_is_the_discounted_mean_of_where_its_visits_led(group: CreditGroup, beta: float) -> None:
    credit = build(CRBCConfig(beta=beta)).assign(group)
    usual = np.mean([credit.state_value[turn.anchor] for t in group.trajectories for turn in t.turns])
    led_to = defaultdict(list)
    for trajectory in group.trajectories:
        for turn in trajectory.turns[:-1]:
            led_to[turn.anchor].append(credit.state_value[turn.next_anchor])
        last = trajectory.turns[-1]
        cut_off = credit.state_value.get(last.next_anchor, usual)
        end = {"success": 1.0, "failure": 0.0, "truncated": cut_off}[trajectory.outcome]
        led_to[last.anchor].append(end)
    assert credit.state_value.keys() == led_to.keys()
    for state, values in led_to.items():
        assert 0.0 <= credit.state_value[state] <= 1.0
        assert credit.state_value[state] == pytest.approx(beta * np.mean(values), abs=1e-9)


@unhurried
@given(group=groups(), copies=st.integers(2, 4))
def test_a_duplicated_group_earns_the_same_step_credit(group: CreditGroup, copies: int) -> None:
    credit = build(CRBCConfig()).assign(group)
    repeated = build(CRBCConfig()).assign(CreditGroup("g", group.trajectories * copies))
    for i, steps in enumerate(repeated.step_adv):
        np.testing.assert_allclose(steps, credit.step_adv[i % len(group.trajectories)], rtol=0, atol=1e-12)


@unhurried
@given(group=groups())
def test_where_a_time_limit_is_part_of_the_task_truncation_ends_where_failure_does(group: CreditGroup) -> None:
    renamed = tuple(
        CreditTrajectory("failure" if t.outcome == "truncated" else t.outcome, t.turns) for t in group.trajectories
    )
    strategy = build(CRBCConfig(truncation="failure"))
    assert strategy.assign(CreditGroup("g", renamed)).state_value == strategy.assign(group).state_value


@unhurried
@given(group=groups())
def test_the_names_of_states_carry_no_meaning(group: CreditGroup) -> None:
    names = {"A": "9", "B": "", "C": "0", "D": "success"}
    renamed = tuple(
        CreditTrajectory(
            t.outcome,
            tuple(
                CreditTurn(names[u.anchor], u.action, names[u.next_anchor], u.reward, u.invalid, u.num_tokens)
                for u in t.turns
            ),
        )
        for t in group.trajectories
    )
    credit, other = build(CRBCConfig()).assign(group), build(CRBCConfig()).assign(CreditGroup("g", renamed))
    for have, want in zip(other.step_adv, credit.step_adv, strict=True):
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-9)


def test_a_self_loop_is_worth_one_turn_of_delay() -> None:
    # V(A) = beta * (V(A) / 2 + 1 / 2) with beta = .5: V = 1/3, Q(loop) = 1/6, Q(go) = 1/2, sigma = 1/6.
    group = CreditGroup("g", (path("success", ("A", "loop", "A"), ("A", "go", "A")),))
    credit = build(CRBCConfig(beta=0.5)).assign(group)
    assert credit.state_value == pytest.approx({"A": 1 / 3})
    np.testing.assert_allclose(credit.step_adv[0], [-1.0, 1.0])


def test_a_cycle_nobody_leaves_is_worth_nothing() -> None:
    circle = path("truncated", ("A", "x", "B"), ("B", "x", "A"), ("A", "x", "B"))
    credit = build(CRBCConfig(beta=0.999999)).assign(CreditGroup("g", (circle, circle)))
    assert credit.state_value == {"A": 0.0, "B": 0.0}


def test_of_two_ways_to_succeed_the_shorter_earns_more() -> None:
    short = path("success", ("A", "x", "B"))
    long = path("success", ("A", "y", "B"), ("B", "x", "C"), ("C", "x", "D"))
    credit = build(CRBCConfig(sigma_min=0.1)).assign(CreditGroup("g", (short, long)))
    # Q(A, x) = .98, Q(A, y) = .98 ** 3, V their mean; their distance is under sigma_min = .1.
    half = (0.98 - 0.98**3) / 2
    assert credit.step_adv[0][0] == pytest.approx(half / 0.1)
    assert credit.step_adv[1].tolist() == pytest.approx([-half / 0.1, 0.0, 0.0])
    assert credit.traj_adv.tolist() == [0.0, 0.0]


def test_equally_good_actions_earn_exactly_nothing() -> None:
    # Five two-turn ways, each won once and lost once: in floating point Q(A, .) and V(A) differ in the last place.
    ways = tuple(
        path(outcome, ("A", action, action), (action, "x", "end")) for action in "pqrst" for outcome in OUTCOMES[:2]
    )
    credit = build(CRBCConfig()).assign(CreditGroup("g", ways))
    assert [steps.tolist() for steps in credit.step_adv] == [[0.0, 0.0]] * 10
    assert [covered.tolist() for covered in credit.coverage] == [[1, 0]] * 10


def test_an_invalid_turn_is_compared_with_the_valid_actions_of_its_state() -> None:
    garbled = CreditTrajectory("failure", (CreditTurn("A", INVALID, "A", 0.0, True, num_tokens=1),))
    credit = build(CRBCConfig()).assign(CreditGroup("g", (garbled, path("success", ("A", "x", "A")))))
    assert credit.step_adv[0][0] == pytest.approx(-1.0)
    assert credit.step_adv[1][0] == pytest.approx(1.0)
    assert credit.diagnostics["invalid_share"] == 0.5


def test_aliasing_counts_repeated_actions_that_led_to_different_states() -> None:
    group = CreditGroup(
        "g",
        (
            path("failure", ("A", "x", "B"), ("B", "y", "C")),
            path("failure", ("A", "x", "C"), ("C", "z", "D")),
            path("failure", ("A", "w", "B"), ("B", "y", "C")),
        ),
    )
    # (A, x) and (B, y) repeat; only (A, x) leads to two states. C is the one state visited once, of six turns.
    diagnostics = build(CRBCConfig()).assign(group).diagnostics
    assert diagnostics["aliased_share"] == 0.5
    assert diagnostics["singleton_share"] == pytest.approx(1 / 6)
    assert diagnostics["coverage"] == pytest.approx(3 / 6)


def test_a_path_through_a_thousand_states_is_discounted_turn_by_turn() -> None:
    edges = [(f"{i:04d}", "x", f"{i + 1:04d}") for i in range(1000)]
    credit = build(CRBCConfig()).assign(CreditGroup("g", (path("success", *edges),)))
    assert credit.state_value["0000"] == pytest.approx(0.98**1000, rel=1e-9)
    assert credit.state_value["0999"] == pytest.approx(0.98)
