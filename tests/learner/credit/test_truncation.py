"""A trajectory that was cut off: unfinished, or failed, in every strategy that judges turns on a graph."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from milepost.learner.credit.assignment import Credit, CreditGroup
from milepost.learner.credit.graph import backed_up, build_graph, solve_values
from milepost.learner.credit.history import transitions
from milepost.learner.credit.settings import GraphSettings
from milepost.learner.credit.strategies.pbrs import PBRSConfig
from milepost.learner.credit.strategies.registry import SETTINGS, build
from milepost.learner.credit.strategies.registry import settings as credit_settings
from tests.learner.credit.random_groups import assert_finite, groups, unhurried

GRAPHS = sorted(name for name, kind in SETTINGS.items() if issubclass(kind, GraphSettings))


def credited(group: CreditGroup, strategy: str, truncation: str) -> Credit:
    return build(credit_settings(strategy=strategy, truncation=truncation)).assign(group)


def test_only_the_default_strategy_departs_from_what_is_published() -> None:
    defaults = {name: credit_settings(strategy=name).truncation for name in GRAPHS}
    assert defaults == {"crbc": "bootstrap", "graphgpo": "bootstrap", "graphhca": "failure", "pbrs": "failure"}


@pytest.mark.parametrize("strategy", GRAPHS)
@pytest.mark.parametrize("truncation", ["bootstrap", "failure"])
@unhurried
@given(group=groups())
def test_either_choice_gives_finite_credit(strategy: str, truncation: str, group: CreditGroup) -> None:
    assert_finite(credited(group, strategy, truncation))


@pytest.mark.parametrize("strategy", GRAPHS)
@unhurried
@given(group=groups(outcomes=("success", "failure")))
def test_without_a_cut_both_choices_are_one(strategy: str, group: CreditGroup) -> None:
    one, other = (credited(group, strategy, truncation) for truncation in ("bootstrap", "failure"))
    for have, want in zip(one.total, other.total, strict=True):
        np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize("strategy", GRAPHS)
def test_the_last_move_before_a_time_limit_is_judged_by_where_it_led(strategy: str) -> None:
    # Both stand in A; one is cut off in B, from where the third one succeeds, the other fails.
    group = CreditGroup.from_walks("A good B truncated", "A poor C failure", "B go D success")
    kind, hard = (credited(group, strategy, truncation) for truncation in ("bootstrap", "failure"))
    assert kind.step_adv[0][0] > hard.step_adv[0][0]
    assert kind.step_adv[0][0] > kind.step_adv[1][0]


def test_a_visited_last_state_is_worth_what_it_is_worth_there() -> None:
    # V(B) = .5, Q(A, good) = .5 V(B) = .25, Q(A, poor) = 0, V(A) = .125.
    group = CreditGroup.from_walks("A good B truncated", "A poor C failure", "B go D success")
    values = solve_values(build_graph(group, truncation="bootstrap"), beta=0.5)
    assert values.value.tolist() == [0.125, 0.5]
    assert values.q.tolist() == [0.25, 0.0, 0.5]
    assert solve_values(build_graph(group), beta=0.5).value.tolist() == [0.0, 0.5]


def test_a_last_state_that_nobody_acted_in_has_the_mean_value_of_all_visits() -> None:
    # V(A) = .5 (mean + 0) / 2 and V(B) = .5, over two visits of A and one of B: mean = (2 V(A) + V(B)) / 3,
    # so mean = (.5 mean + .5) / 3 = .2 and V(A) = .05.
    group = CreditGroup.from_walks("A on Z truncated", "A poor C failure", "B go D success")
    graph = build_graph(group, truncation="bootstrap")
    assert graph.edge_target.tolist() == [4, 3, 2]  # nobody acted in Z; no success; success
    values = solve_values(graph, beta=0.5)
    assert values.value.tolist() == pytest.approx([0.05, 0.5])
    assert values.q.tolist() == pytest.approx([0.1, 0.0, 0.5])


@unhurried
@given(group=groups(), beta=st.sampled_from([0.5, 0.98]))
def test_solved_values_are_those_that_a_backup_leaves_as_they_are(group: CreditGroup, beta: float) -> None:
    graph = build_graph(group, truncation="bootstrap")
    values = solve_values(graph, beta=beta)
    assert np.all((values.value >= 0) & (values.value <= 1))
    again = backed_up(graph, values, beta=beta, depth=1, reward=graph.won)
    np.testing.assert_allclose(again.value, values.value, rtol=0, atol=1e-9)


def test_what_the_past_was_cut_off_in_is_remembered_as_a_way_there() -> None:
    group = CreditGroup.from_walks("A x B truncated", "A y C failure")
    kept = {p.action: p.target for p in transitions(group, truncation="bootstrap")}
    assert kept == {"x": "B", "y": None}
    assert {p.target for p in transitions(group)} == {None}
    later = replace(CreditGroup.from_walks("A x B go D success"), history=transitions(group, truncation="bootstrap"))
    credit = build(credit_settings(history_decay=0.5, beta=0.5)).assign(later)
    assert credit.state_value == pytest.approx({"A": 0.5 * 2 / 3 * 0.5, "B": 0.5})


def test_shaping_keeps_the_potential_of_what_was_cut_off() -> None:
    # V(B) = .5 by the second one; the first earned nothing and stands in B: gamma V(B) - V(A), V(A) = .25.
    group = CreditGroup.from_walks("A x B truncated", "B go C success")
    credit = build(PBRSConfig(gamma=0.5, truncation="bootstrap")).assign(group)
    assert credit.state_value == {"A": 0.25, "B": 0.5}
    assert [steps.tolist() for steps in credit.step_adv] == [[0.0], [0.5]]
    assert build(PBRSConfig(gamma=0.5)).assign(group).step_adv[0].tolist() == [0.0], "V(A) is 0, too, if it failed"


@pytest.mark.parametrize("potential", ["progress", "value"])
def test_a_potential_that_knows_no_rest_cannot_stand_for_it(potential: str) -> None:
    with pytest.raises(ValidationError, match="truncation = bootstrap needs potential graph"):
        PBRSConfig(potential=potential, truncation="bootstrap")
