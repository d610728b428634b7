"""CRBC beyond its defaults: finite depth, returns instead of success, shrinkage, and the past of the task."""

from collections import defaultdict
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from milepost.learner.credit.assignment import (
    INVALID,
    Credit,
    CreditGroup,
    CreditTrajectory,
    CreditTurn,
    PastTransition,
)
from milepost.learner.credit.history import faded, transitions
from milepost.learner.credit.strategies.crbc import CRBC, CRBCConfig
from tests.learner.credit.random_groups import assert_finite, groups, path, unhurried
from tests.learner.credit.toy4 import assert_turns_equal, toy4

PUBLISHED = {"sigma_min": 0.1, "truncation": "failure"}
"""What the paper sets and our defaults do not."""
VARIANTS = [
    CRBCConfig(depth=0),
    CRBCConfig(depth=3),
    CRBCConfig(objective="return"),
    CRBCConfig(objective="return", depth=2),
    CRBCConfig(shrinkage=2.0),
]
every_variant = pytest.mark.parametrize("config", VARIANTS, ids=lambda c: f"{c.objective}-{c.depth}-{c.shrinkage}")


def assign(group: CreditGroup, **settings: object) -> Credit:
    return CRBC(CRBCConfig(**settings)).assign(group)


def ended_with(outcome: str, action: str, reward: float) -> CreditTrajectory:
    return CreditTrajectory(outcome, (CreditTurn("A", action, "B", reward, False, num_tokens=1),))


def by_pair(group: CreditGroup, credit: Credit) -> dict[tuple[str, str], float]:
    turns = [turn for trajectory in group.trajectories for turn in trajectory.turns]
    return {(u.anchor, u.action): float(a) for u, a in zip(turns, np.concatenate(credit.step_adv), strict=True)}


@pytest.mark.parametrize(
    ("depth", "values"),
    [
        (0, [0.4754, 0.6533, 0.2401]),
        (1, [0.4378, 0.7318, 0.2189]),
        (2, [0.4658, 0.7248, 0.2329]),
        (3, [0.4693, 0.7294, 0.2346]),
    ],
)
def test_finite_depths_match_the_worked_example(depth: int, values: list[float]) -> None:
    credit = assign(toy4(), depth=depth, **PUBLISHED)
    np.testing.assert_allclose([credit.state_value[s] for s in "ABC"], values, atol=5e-5, rtol=0)


def test_without_a_backup_every_visit_is_judged_by_its_own_future() -> None:
    # A-x: .98^2 and 0, A-y: .98^3 and 0; half their distance, .0048, is under sigma_min = .1.
    # Elsewhere the values are those of one action each: B-p .98, B-q 0; C-r .98^2, C-w 0.
    gap = (0.98**2 - 0.98**3) / 4
    a = gap / 0.1
    expected = ([a, 0.7071], [a, -1.4142, -0.5774], [-a, 1.7321, 0.7071], [-a, -0.5774, -0.5774])
    assert_turns_equal(assign(toy4(), depth=0, sigma_min=0.1).step_adv, expected)


def test_without_a_backup_the_gaps_are_the_means_of_peers_with_the_same_action() -> None:
    # BiPACE (arXiv 2606.25556) with exact anchors, whose return of the last turn is not discounted; a scale of 1.
    credit = assign(toy4(), depth=0, beta=0.95, sigma_min=1.0)
    gaps = {pair: advantage / 0.95 for pair, advantage in by_pair(toy4(), credit).items()}
    expected = {("A", "x"): 0.0119, ("B", "p"): 0.3333, ("B", "q"): -0.6667, ("C", "r"): 0.7125, ("C", "w"): -0.2375}
    assert gaps == pytest.approx({**expected, ("A", "y"): -0.0119}, abs=5e-5)


@unhurried
@given(group=groups(), objective=st.sampled_from(["success", "return"]))
def test_depth_zero_equals_averages_over_visits(group: CreditGroup, objective: str) -> None:
    seen, chosen = defaultdict(list), defaultdict(list)
    for trajectory in group.trajectories:
        pays = [turn.reward if objective == "return" else 0.0 for turn in trajectory.turns]
        if objective == "success":
            pays[-1] = float(trajectory.outcome == "success")
        for t, turn in enumerate(trajectory.turns):
            realised = sum(0.9 ** (k - t + 1) * pays[k] for k in range(t, len(pays)))
            seen[turn.anchor].append(realised)
            chosen[turn.anchor, turn.action].append(realised)
    credit = assign(group, depth=0, beta=0.9, objective=objective, sigma_min=0.1)
    assert credit.state_value == pytest.approx({s: np.mean(x) for s, x in seen.items()}, rel=1e-9, abs=1e-12)
    for (state, action), advantage in by_pair(group, credit).items():
        pairs = {a: chosen[s, a] for s, a in chosen if s == state}
        centre = np.mean(seen[state])
        sigma = np.sqrt(sum(len(x) * (np.mean(x) - centre) ** 2 for x in pairs.values()) / len(seen[state]))
        unit = 1.0 if objective == "success" else max(abs(t.reward) for t in group.trajectories) or 1.0
        expected = (np.mean(pairs[action]) - centre) / max(sigma, 0.1 * unit) if len(pairs) > 1 else 0.0
        assert advantage == pytest.approx(expected, rel=1e-6, abs=1e-9)


@unhurried
@given(group=groups())
def test_many_backups_reach_the_closure(group: CreditGroup) -> None:
    deep, closed = assign(group, depth=400, beta=0.9), assign(group, beta=0.9)
    assert deep.state_value == pytest.approx(closed.state_value, abs=1e-12)
    for have, want in zip(deep.step_adv, closed.step_adv, strict=True):
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("objective", ["success", "return"])
@unhurried
@given(group=groups(), depth=st.integers(0, 4))
def test_step_credit_sums_to_zero_over_the_visits_of_a_state_at_every_depth(
    objective: str, group: CreditGroup, depth: int
) -> None:
    credit = assign(group, depth=depth, objective=objective)
    sums: defaultdict[str, float] = defaultdict(float)
    for trajectory, steps in zip(group.trajectories, credit.step_adv, strict=True):
        for turn, step in zip(trajectory.turns, steps, strict=True):
            sums[turn.anchor] += step
    assert all(abs(x) < 1e-9 for x in sums.values())


def test_an_edge_is_worth_the_mean_reward_of_those_who_took_it() -> None:
    # A-x wins 3 or 1, A-y fails with .4; beta .5: Q = 1, .2; V = 2.2 / 3; sigma^2 = (2 * .2667^2 + .5333^2) / 3.
    group = CreditGroup(
        "g", (ended_with("success", "x", 3), ended_with("success", "x", 1), ended_with("failure", "y", 0.4))
    )
    credit = assign(group, objective="return", beta=0.5)
    assert credit.state_value == pytest.approx({"A": 2.2 / 3})
    assert by_pair(group, credit) == pytest.approx({("A", "x"): 0.5**0.5, ("A", "y"): -(2.0**0.5)})
    assert by_pair(group, assign(group, beta=0.5)) == pytest.approx(by_pair(group, credit))  # two actions, one order


def test_a_return_may_be_negative_and_reaches_back_through_the_graph() -> None:
    group = CreditGroup("g", (path("failure", ("A", "x", "B"), ("B", "x", "C")), path("failure", ("A", "y", "D"))))
    turns = group.trajectories[0].turns
    costly = replace(group.trajectories[0], turns=(turns[0], msgspec.structs.replace(turns[1], reward=-4.0)))
    credit = assign(replace(group, trajectories=(costly, group.trajectories[1])), objective="return", beta=0.5)
    assert credit.state_value == {"A": -0.5, "B": -2.0}
    assert [steps.tolist() for steps in credit.step_adv] == [[-1.0, 0.0], [1.0]]


@unhurried
@given(group=groups())
def test_a_return_of_one_for_success_is_success(group: CreditGroup) -> None:
    binary = []
    for trajectory in group.trajectories:
        turns = [msgspec.structs.replace(turn, reward=0.0) for turn in trajectory.turns]
        turns[-1] = msgspec.structs.replace(turns[-1], reward=float(trajectory.outcome == "success"))
        binary.append(replace(trajectory, turns=tuple(turns)))
    same = replace(group, trajectories=tuple(binary))
    success, returns = assign(same), assign(same, objective="return")
    assert returns.state_value == success.state_value
    for have, want in zip(returns.step_adv, success.step_adv, strict=True):
        np.testing.assert_array_equal(have, want)


def test_the_penalty_for_invalid_turns_is_no_return() -> None:
    garbled = CreditTrajectory("failure", (CreditTurn("A", INVALID, "A", 0.0, True, num_tokens=1),))
    group = CreditGroup("g", (ended_with("success", "x", 2.0), garbled))
    credit = assign(group, objective="return", beta=0.5, invalid_penalty=50.0)
    assert credit.state_value == {"A": 0.5}


def test_credit_from_few_visits_is_shrunk() -> None:
    # k = 1: visits of A-x 2, B-p 2, C-w 3 keep 2/3, 2/3, 3/4; B-q and C-r were seen once and keep half.
    whole, shrunk = by_pair(toy4(), assign(toy4())), by_pair(toy4(), assign(toy4(), shrinkage=1.0))
    kept = {"x": 2 / 3, "y": 2 / 3, "p": 2 / 3, "q": 1 / 2, "r": 1 / 2, "w": 3 / 4}
    assert shrunk == pytest.approx({pair: kept[pair[1]] * a for pair, a in whole.items()})
    assert shrunk["B", "q"] == pytest.approx(-0.7071, abs=5e-5)


def test_past_visits_are_visits_that_credit_rests_on() -> None:
    history = (PastTransition("B", "q", "C", False, 2.0),)
    told = by_pair(toy4(), assign(toy4(history), shrinkage=1.0))
    unshrunk = by_pair(toy4(), assign(toy4(history)))
    assert told["B", "q"] == pytest.approx(unshrunk["B", "q"] * 3 / 4)


def test_a_past_success_credits_the_way_to_it_in_a_group_without_one() -> None:
    # beta = .5 and one past win of B-p: V(A) = .0625, Q(A, x) - V(A) = .0625 under sigma_min; B: 0 - .25 over .25.
    group = CreditGroup("g", (path("failure", ("A", "x", "B"), ("B", "q", "D")), path("failure", ("A", "y", "C"))))
    assert not np.any(np.concatenate(assign(group).step_adv))
    told = assign(replace(group, history=(PastTransition("B", "p", None, True, 1.0),)), beta=0.5, sigma_min=0.1)
    assert told.state_value == pytest.approx({"A": 0.0625, "B": 0.25})
    np.testing.assert_allclose(np.concatenate(told.step_adv), [0.625, -1.0, -0.625])
    assert [covered.tolist() for covered in told.coverage] == [[1, 1], [1]]
    np.testing.assert_array_equal(told.traj_adv, [0.0, 0.0])


@unhurried
@given(group=groups(), earlier=groups())
def test_a_history_enriches_steps_and_leaves_trajectories_alone(group: CreditGroup, earlier: CreditGroup) -> None:
    told = assign(replace(group, history=faded(transitions(earlier), 0.5)))
    assert_finite(told)
    np.testing.assert_array_equal(told.traj_adv, assign(group).traj_adv)
    assert [len(steps) for steps in told.step_adv] == [len(t.turns) for t in group.trajectories]
    assert all(0.0 <= value <= 0.98 for value in told.state_value.values())


@every_variant
@unhurried
@given(data=st.data(), group=groups())
def test_the_order_of_the_trajectories_does_not_matter(
    config: CRBCConfig, data: st.DataObject, group: CreditGroup
) -> None:
    order = data.draw(st.permutations(range(len(group.trajectories))))
    shuffled = replace(group, trajectories=tuple(group.trajectories[i] for i in order))
    credit, other = CRBC(config).assign(group), CRBC(config).assign(shuffled)
    assert_finite(credit)
    assert other.state_value == credit.state_value
    for position, i in enumerate(order):
        np.testing.assert_array_equal(other.step_adv[position], credit.step_adv[i])


@every_variant
@unhurried
@given(group=groups(outcomes=("failure", "truncated")))
def test_a_group_without_success_or_reward_earns_no_step_credit(config: CRBCConfig, group: CreditGroup) -> None:
    nothing = tuple(
        replace(t, turns=tuple(msgspec.structs.replace(turn, reward=0.0) for turn in t.turns))
        for t in group.trajectories
    )
    credit = CRBC(config).assign(replace(group, trajectories=nothing))
    assert set(credit.state_value.values()) == {0.0}
    assert not np.any(np.concatenate(credit.step_adv))


@pytest.mark.parametrize("settings", [{"objective": "return"}, {"depth": 2}])
def test_what_needs_returns_refuses_a_history(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="of past transitions only the outcome is kept"):
        CRBCConfig(history_decay=0.9, **settings)
    with pytest.raises(ValueError, match="group toy4 has a history, of which only the outcomes are known"):
        assign(toy4((PastTransition("B", "p", None, True, 1.0),)), **settings)


@pytest.mark.parametrize(
    "settings", [{"history_decay": 1.0}, {"history_decay": -0.1}, {"depth": -1}, {"shrinkage": -1}]
)
def test_settings_outside_their_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        CRBCConfig(**settings)


def test_diagnostics_of_a_group_with_a_history_are_about_its_own_turns() -> None:
    # The past knows two actions in P, which the group never saw: coverage is over A and B.
    group = CreditGroup("g", (path("failure", ("A", "x", "B"), ("B", "q", "D")), path("failure", ("A", "y", "C"))))
    history = (PastTransition("P", "x", None, True, 9.0), PastTransition("P", "y", None, False, 9.0))
    diagnostics = assign(replace(group, history=history)).diagnostics
    assert diagnostics["states"] == 3.0
    assert diagnostics["coverage"] == pytest.approx(2 / 3)
    assert diagnostics["step_adv_rms"] == diagnostics["step_adv_max"] == 0.0


def solved_values(group: CreditGroup, preference: dict[tuple[str, str], float], *, beta: float) -> dict[str, float]:
    """V of the group's process if every action were taken `exp(preference)` times as often as it was."""
    counts: dict[str, float] = defaultdict(float)
    leads: dict[tuple[str, str | None], float] = defaultdict(float)
    for trajectory in group.trajectories:
        for t, turn in enumerate(trajectory.turns):
            weight = np.exp(preference[turn.anchor, turn.action])
            is_last = t == len(trajectory.turns) - 1
            counts[turn.anchor] += weight
            leads[turn.anchor, None if is_last else turn.next_anchor] += weight * (
                trajectory.outcome == "success" if is_last else 1.0
            )
    states = sorted(counts)
    share = {edge: weight / counts[edge[0]] for edge, weight in leads.items()}
    moves = np.array([[share.get((s, x), 0.0) for x in states] for s in states])
    wins = np.array([share.get((s, None), 0.0) for s in states])
    values = np.linalg.solve(np.eye(len(states)) - beta * moves, beta * wins)
    return dict(zip(states, values.tolist(), strict=True))


@unhurried
@given(group=groups(), strength=st.sampled_from([0.01, 0.3, 1.0, 5.0]))
def test_taking_actions_more_often_the_better_their_credit_makes_no_state_worse(
    group: CreditGroup, strength: float
) -> None:
    # Proposition 2 of the paper, on the empirical process.
    credit = assign(group, truncation="failure")
    turns = [turn for trajectory in group.trajectories for turn in trajectory.turns]
    steps = np.concatenate(credit.step_adv)
    pairs = [(turn.anchor, turn.action) for turn in turns]
    as_played = solved_values(group, dict.fromkeys(pairs, 0.0), beta=0.98)
    assert as_played == pytest.approx(credit.state_value, abs=1e-9)
    preference = dict(zip(pairs, (strength * steps).tolist(), strict=True))
    improved = solved_values(group, preference, beta=0.98)
    assert all(improved[state] >= value - 1e-9 for state, value in as_played.items())
