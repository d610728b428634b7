"""The transition graph: its counts, what a history adds to them, and the values of states and actions."""

import itertools
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.learner.credit.agreement import graph_diagnostics
from milepost.learner.credit.assignment import CreditGroup, CreditTrajectory, CreditTurn, PastTransition
from milepost.learner.credit.graph import (
    TransitionGraph,
    backed_up,
    build_graph,
    solve_values,
    visit_local_values,
)
from milepost.learner.credit.history import faded, transitions
from tests.learner.credit.random_groups import groups, path, unhurried

WON = PastTransition("B", "p", None, True, 1.0)


def counts(graph: TransitionGraph) -> dict[tuple[str, str, str], float]:
    pairs, targets = list(graph.pair_index), [*graph.states, "success", "no success"]
    return {
        (*pairs[pair], targets[target]): float(n)
        for pair, target, n in zip(graph.edge_pair, graph.edge_target, graph.edge_count, strict=True)
    }


def lost() -> CreditGroup:
    """A -x-> B -q-> end and A -y-> C -r-> end, both without success."""
    return CreditGroup(
        "g", (path("failure", ("A", "x", "B"), ("B", "q", "D")), path("truncated", ("A", "y", "C"), ("C", "r", "D")))
    )


def big(seed: int, *, states: int = 400, trajectories: int = 8, turns: int = 50) -> CreditGroup:
    """Random walks with loops and self-loops over up to `states` states."""
    rng = random.Random(seed)
    walks = []
    for _ in range(trajectories):
        places = ["0", *(str(rng.randrange(states)) for _ in range(turns))]
        steps = [CreditTurn(a, rng.choice("xyz"), b, 0.0, False, num_tokens=1) for a, b in itertools.pairwise(places)]
        walks.append(CreditTrajectory(rng.choice(["success", "failure"]), tuple(steps)))
    return CreditGroup("big", tuple(walks))


def test_past_counts_are_added_to_the_groups_own() -> None:
    history = (
        PastTransition("A", "x", "B", False, 0.5),
        PastTransition("A", "z", None, False, 0.25),
        PastTransition("B", "p", None, True, 1.5),
    )
    graph = build_graph(replace(lost(), history=history))
    assert counts(graph) == {
        ("A", "x", "B"): 1.5,
        ("A", "y", "C"): 1.0,
        ("A", "z", "no success"): 0.25,
        ("B", "p", "success"): 1.5,
        ("B", "q", "no success"): 1.0,
        ("C", "r", "no success"): 1.0,
    }
    assert graph.state_visits.tolist() == [2.75, 2.5, 1.0]
    assert graph.num_actions.tolist() == [3, 2, 1]


def test_states_known_from_the_past_only_are_states_of_the_graph() -> None:
    history = (PastTransition("A", "z", "P", False, 1.0), PastTransition("P", "x", None, True, 1.0))
    assert build_graph(replace(lost(), history=history)).states == ("A", "B", "C", "P")


def test_a_past_transition_into_the_unknown_is_left_out() -> None:
    history = (PastTransition("A", "z", "P", False, 5.0),)
    assert counts(build_graph(replace(lost(), history=history))) == counts(build_graph(lost()))


def test_a_past_success_makes_the_way_there_worth_something() -> None:
    # beta = .5: V(B) = .5 * 1/2, V(A) = .5 * V(B) / 2; Q(A, x) = .5 * V(B), and nothing else ever won.
    graph = build_graph(replace(lost(), history=(WON,)))
    values = solve_values(graph, beta=0.5)
    np.testing.assert_allclose(values.value, [0.0625, 0.25, 0.0], rtol=0, atol=1e-15)
    q = {pair: values.q[row] for pair, row in graph.pair_index.items()}
    assert q == pytest.approx({("A", "x"): 0.125, ("A", "y"): 0, ("B", "p"): 0.5, ("B", "q"): 0, ("C", "r"): 0})
    np.testing.assert_allclose(values.sigma, [0.0625, 0.25, 0.0], rtol=0, atol=1e-15)


def test_a_faded_success_counts_less_than_a_fresh_failure() -> None:
    (faint,) = faded((WON,), 0.25)
    values = solve_values(build_graph(replace(lost(), history=(faint,))), beta=0.5)
    assert values.value[1] == pytest.approx(0.5 * 0.25 / 1.25)


@unhurried
@given(group=groups(), earlier=groups())
def test_an_unfaded_history_is_as_good_as_having_been_there(group: CreditGroup, earlier: CreditGroup) -> None:
    told = build_graph(replace(group, history=transitions(earlier)))
    together = build_graph(CreditGroup("g", group.trajectories + earlier.trajectories))
    assert (told.states, told.pair_index) == (together.states, together.pair_index)
    for name in ("pair_state", "edge_pair", "edge_target", "edge_count"):
        np.testing.assert_array_equal(getattr(told, name), getattr(together, name))
    np.testing.assert_array_equal(told.turn_edge, together.turn_edge[: len(told.turn_edge)])


@unhurried
@given(group=groups())
def test_each_turn_knows_the_edge_it_took(group: CreditGroup) -> None:
    graph = build_graph(group)
    pairs, targets = list(graph.pair_index), [*graph.states, True, False]
    taken = [(*pairs[graph.edge_pair[e]], targets[graph.edge_target[e]]) for e in graph.turn_edge]
    expected = []
    for trajectory in group.trajectories:
        ends: list[str | bool] = [turn.next_anchor for turn in trajectory.turns]
        ends[-1] = trajectory.outcome == "success"
        expected += [(turn.anchor, turn.action, end) for turn, end in zip(trajectory.turns, ends, strict=True)]
    assert taken == expected
    np.testing.assert_array_equal(np.bincount(graph.turn_edge), graph.edge_count)


@unhurried
@given(data=st.data(), group=groups(), earlier=groups())
def test_the_graph_does_not_depend_on_the_order_of_the_trajectories(
    data: st.DataObject, group: CreditGroup, earlier: CreditGroup
) -> None:
    history = faded(transitions(earlier), 0.3)
    order = data.draw(st.permutations(range(len(group.trajectories))))
    shuffled = tuple(group.trajectories[i] for i in order)
    one, other = (build_graph(CreditGroup("g", ts, history)) for ts in (group.trajectories, shuffled))
    assert one.pair_index == other.pair_index
    np.testing.assert_array_equal(one.edge_count, other.edge_count)
    np.testing.assert_array_equal(solve_values(one, beta=0.9).value, solve_values(other, beta=0.9).value)


@pytest.mark.parametrize("beta", [0.5, 0.98, 0.9999])
def test_values_of_four_hundred_states_with_loops_satisfy_their_equation(beta: float) -> None:
    group = big(3, trajectories=40)
    graph = build_graph(replace(group, history=faded(transitions(big(4)), 0.7)))
    assert len(graph.states) > 390
    assert Counter(graph.edge_target == graph.edge_state)[True] > 0  # self-loops
    values = solve_values(graph, beta=beta)
    assert values.value.min() >= 0.0
    assert values.value.max() <= beta
    once_more = backed_up(graph, values, beta=beta, depth=1, reward=graph.won)
    np.testing.assert_allclose(once_more.value, values.value, rtol=0, atol=1e-9)
    np.testing.assert_allclose(once_more.q, values.q, rtol=0, atol=1e-9)


@unhurried
@given(group=groups(max_size=1))
def test_a_single_trajectory_has_values(group: CreditGroup) -> None:
    values = solve_values(build_graph(group), beta=0.98)
    won = group.trajectories[0].outcome == "success"
    assert np.all(values.value > 0) if won else not np.any(values.value)


def test_ends_may_be_worth_a_return() -> None:
    # V(A) = .5 * (3 - 1) / 2, Q(A, x) = .5 * 3, Q(A, y) = .5 * -1: values below 0 and above 1.
    graph = build_graph(CreditGroup("g", (path("success", ("A", "x", "B")), path("failure", ("A", "y", "B")))))
    values = solve_values(graph, beta=0.5, reward=np.array([3.0, -1.0]))
    assert (values.value.tolist(), values.q.tolist(), values.sigma.tolist()) == ([0.5], [1.5, -0.5], [1.0])


def test_what_was_realised_is_averaged_over_visits() -> None:
    # A(x): 4, 2 and A(y): 0 make 3 and 0 by action, 2 by state; sigma^2 = (2 * 1 + 1 * 4) / 3.
    steps = (path("success", ("A", "x", "B")), path("success", ("A", "x", "B")), path("failure", ("A", "y", "B")))
    values = visit_local_values(build_graph(CreditGroup("g", steps)), np.array([4.0, 2.0, 0.0]))
    assert (values.value.tolist(), values.q.tolist()) == ([2.0], [3.0, 0.0])
    assert values.sigma.tolist() == pytest.approx([2**0.5])


@pytest.mark.parametrize("history", [(WON,), (PastTransition("A", "x", "B", False, 1e-9),)])
def test_what_was_realised_after_past_transitions_is_not_known(history: tuple[PastTransition, ...]) -> None:
    graph = build_graph(replace(lost(), history=history))
    with pytest.raises(ValueError, match="what was realised after them is not known"):
        visit_local_values(graph, np.zeros(4))


def test_diagnostics_judge_the_anchors_by_the_turns_of_the_group() -> None:
    # A is met twice, B and C once; with a past visit of B only C is met once. Nothing repeats in the group.
    assert graph_diagnostics(lost(), build_graph(lost())) == {
        "states": 3.0,
        "singleton_share": 0.5,
        "aliased_share": 0.0,
    }
    told = replace(lost(), history=(WON, PastTransition("P", "x", None, True, 0.5)))
    assert graph_diagnostics(told, build_graph(told)) == {"states": 4.0, "singleton_share": 0.25, "aliased_share": 0.0}
