"""SALT: shared transitions get the mean of their trajectories' advantages."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.learner.credit.assignment import Credit, CreditGroup, CreditTrajectory, CreditTurn
from milepost.learner.credit.history import transitions
from milepost.learner.credit.strategies.salt import SALT, SALTConfig
from milepost.learner.credit.strategies.starpo import StarPO, StarPOConfig
from tests.learner.credit.random_groups import assert_finite, groups, path, unhurried
from tests.learner.credit.toy4 import assert_turns_equal, toy4


def assign(group: CreditGroup, **settings: object) -> Credit:
    return SALT(SALTConfig(**settings)).assign(group)


def rewarded(reward: float, *edges: tuple[str, str, str]) -> CreditTrajectory:
    turns = [CreditTurn(s, a, x, 0.0, False, num_tokens=1) for s, a, x in edges]
    turns[-1] = msgspec.structs.replace(turns[-1], reward=reward)
    return CreditTrajectory("success" if reward > 0 else "failure", tuple(turns))


def test_step_advantages_match_the_worked_example() -> None:
    expected = ([0.0, 0.8660], [0.0, -0.8660, -0.8660], [0.0, 0.8660, 0.8660], [0.0, -0.8660, -0.8660])
    credit = assign(toy4())
    assert_turns_equal(credit.step_adv, expected)
    assert_turns_equal(credit.total, expected)
    assert credit.state_value == {}


def test_only_a_shared_transition_is_a_comparison() -> None:
    assert [covered.tolist() for covered in assign(toy4()).coverage] == [[1, 1], [1, 0, 1], [1, 0, 1], [1, 0, 1]]


def test_a_trajectory_has_one_vote_however_often_it_loops() -> None:
    # dr_grpo: returns 3, 0, 0 less their mean are 2, -1, -1. The loop is shared by the first two: (2 - 1) / 2.
    loop = ("A", "x", "A")
    group = CreditGroup(
        "g",
        (
            rewarded(3.0, loop, loop, loop, ("A", "y", "B")),
            rewarded(0.0, loop, ("A", "z", "B")),
            rewarded(0.0, ("A", "z", "B")),
        ),
    )
    credit = assign(group, baseline="dr_grpo")
    assert [steps.tolist() for steps in credit.step_adv] == [[0.5, 0.5, 0.5, 2.0], [0.5, -1.0], [-1.0]]


def test_a_winning_and_a_losing_end_are_never_shared() -> None:
    ends = (path("success", ("A", "x", "B")), path("failure", ("A", "x", "B")))
    group = CreditGroup(
        "g", (replace(ends[0], turns=(msgspec.structs.replace(ends[0].turns[0], reward=1.0),)), ends[1])
    )
    assert_turns_equal(assign(group).step_adv, ([0.7071], [-0.7071]))


def test_the_same_action_that_led_elsewhere_is_not_shared() -> None:
    group = CreditGroup(
        "g", (rewarded(1.0, ("A", "x", "B"), ("B", "x", "D")), rewarded(0.0, ("A", "x", "C"), ("C", "x", "D")))
    )
    assert_turns_equal(assign(group).step_adv, ([0.7071] * 2, [-0.7071] * 2))


@unhurried
@given(group=groups())
def test_a_shared_transition_is_worth_the_mean_of_its_trajectories(group: CreditGroup) -> None:
    credit = assign(group)
    owners: dict[tuple[str, str, str], set[int]] = {}
    taken: list[list[tuple[str, str, str]]] = []
    for i, trajectory in enumerate(group.trajectories):
        ends = [turn.next_anchor for turn in trajectory.turns[:-1]]
        ends.append("won" if trajectory.outcome == "success" else "lost")
        taken.append([(turn.anchor, turn.action, end) for turn, end in zip(trajectory.turns, ends, strict=True)])
        for edge in taken[-1]:
            owners.setdefault(edge, set()).add(i)
    for edges, steps, covered in zip(taken, credit.step_adv, credit.coverage, strict=True):
        expected = [np.mean([credit.traj_adv[i] for i in owners[edge]]) for edge in edges]
        np.testing.assert_allclose(steps, expected, rtol=0, atol=1e-12)
        assert covered.tolist() == [len(owners[edge]) >= 2 for edge in edges]


@unhurried
@given(group=groups(), earlier=groups())
def test_the_past_has_no_vote(group: CreditGroup, earlier: CreditGroup) -> None:
    told, plain = assign(replace(group, history=transitions(earlier))), assign(group)
    for have, want in zip(told.total, plain.total, strict=True):
        np.testing.assert_array_equal(have, want)


@unhurried
@given(group=groups())
def test_with_a_trajectory_weight_alone_it_is_starpo(group: CreditGroup) -> None:
    plain = StarPO(StarPOConfig()).assign(group)
    for have, want in zip(assign(group, w_trajectory=1.0, w_step=0.0).total, plain.total, strict=True):
        np.testing.assert_array_equal(have, want)


@unhurried
@given(data=st.data(), group=groups())
def test_the_order_of_the_trajectories_does_not_matter(data: st.DataObject, group: CreditGroup) -> None:
    order = data.draw(st.permutations(range(len(group.trajectories))))
    credit = assign(group)
    assert_finite(credit)
    other = assign(replace(group, trajectories=tuple(group.trajectories[i] for i in order)))
    for position, i in enumerate(order):
        np.testing.assert_array_equal(other.step_adv[position], credit.step_adv[i])


@pytest.mark.parametrize("outcome", ["success", "failure"])
def test_trajectories_of_one_return_earn_exactly_nothing(outcome: str) -> None:
    same = path(outcome, ("A", "x", "B"), ("B", "y", "C"))
    assert [steps.tolist() for steps in assign(CreditGroup("g", (same, same))).step_adv] == [[0.0, 0.0]] * 2
