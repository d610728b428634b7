import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from milepost.learner.credit.agreement import AnchorFacts, anchor_facts, rank_correlation, sign_flip_share
from milepost.learner.credit.assignment import CreditGroup, CreditTrajectory, CreditTurn

ROWS = arrays(np.float64, 6, elements=st.integers(-4, 4).map(float))


def test_rank_correlation_sees_order_only() -> None:
    # Ranks 1 2 3 4 against 1 3 2 4: deviations -1.5 -.5 .5 1.5 and -1.5 .5 -.5 1.5; 4 / 5.
    assert rank_correlation(np.array([1.0, 2, 3, 400]), np.array([0.0, 2, 1, 3])) == pytest.approx(0.8)


def test_tied_values_share_their_mean_rank() -> None:
    # Ranks 1.5 1.5 3 against 1 2 3: 1.5 / sqrt(1.5 * 2).
    assert rank_correlation(np.array([0.0, 0, 1]), np.array([5.0, 6, 7])) == pytest.approx(0.8660254)


def test_credits_that_differ_by_rounding_are_ties() -> None:
    a = np.array([1.0, 1.0 + 1e-15, 2.0])
    assert rank_correlation(a, np.array([1.0, 1.0, 5.0])) == pytest.approx(1.0)


@pytest.mark.parametrize("a", [[], [1.0], [2.0, 2.0, 2.0]])
def test_without_an_order_there_is_no_correlation(a: list[float]) -> None:
    assert rank_correlation(np.array(a), np.arange(float(len(a)))) is None


@given(ROWS, ROWS)
def test_rank_correlation_is_symmetric_bounded_and_blind_to_scale(a: np.ndarray, b: np.ndarray) -> None:
    found = rank_correlation(a, b)
    assert found == rank_correlation(b, a)
    if found is not None:
        assert -1.0 <= found <= 1.0
        assert rank_correlation(3 * a + 1, b) == pytest.approx(found)
        assert rank_correlation(-a, b) == pytest.approx(-found)


def test_a_flip_is_encouragement_against_discouragement() -> None:
    a, b = np.array([1.0, -1.0, 0.0, 2.0]), np.array([-0.5, -2.0, -1.0, 1e-12])
    assert sign_flip_share(a, b) == 0.25
    assert sign_flip_share(np.array([]), np.array([])) is None


def test_credits_of_different_turns_are_not_compared() -> None:
    for compare in (rank_correlation, sign_flip_share):
        with pytest.raises(ValueError, match="same turns"):
            compare(np.zeros(2), np.zeros(3))


def group(*paths: str) -> CreditGroup:
    """`"AxB BpC"` is a trajectory of two turns."""
    return CreditGroup(
        "t",
        tuple(
            CreditTrajectory(
                "failure",
                tuple(CreditTurn(s, a, x, reward=0.0, invalid=False, num_tokens=1) for s, a, x in path.split()),
            )
            for path in paths
        ),
    )


def test_anchor_facts_count_singletons_and_actions_with_several_outcomes() -> None:
    # A is met three times, B and C once; (A, x) was tried twice and led to B and C; (A, y) once.
    facts = anchor_facts(group("AxB BpB", "AxC CwC", "AyC"))
    assert facts == AnchorFacts(turns=5, states=3, singleton_turns=2, repeated_pairs=1, aliased_pairs=1)
    assert (facts.singleton_share, facts.aliased_share) == (0.4, 1.0)


def test_anchor_facts_of_groups_add_up() -> None:
    both = anchor_facts(group("AxB", "AxB")) + anchor_facts(group("AxB", "AxC"))
    assert both == AnchorFacts(turns=4, states=2, repeated_pairs=2, aliased_pairs=1)
    assert both.aliased_share == 0.5
    assert (AnchorFacts().singleton_share, AnchorFacts().aliased_share) == (0.0, 0.0)
