"""Entropy modulators by hand, and what they may not do to an advantage."""

import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from milepost.learner.credit.assignment import Credit, CreditGroup, CreditTrajectory, CreditTurn
from milepost.learner.credit.modulators import AEMConfig, EMPGConfig, ModulatorConfig, modulate, needs
from milepost.learner.credit.strategies.pbrs import PBRS, PBRSConfig
from milepost.learner.credit.strategies.starpo import StarPO, StarPOConfig

ENTROPY = (0.2, 0.5, 0.8)
ALPHA = [1.5194, 0.9216, 0.5590]


def group(*trajectories: tuple[float | None, ...]) -> CreditGroup:
    """Trajectories of turns of these entropies, two tokens each."""
    return CreditGroup(
        "g",
        tuple(
            CreditTrajectory(
                "failure", tuple(CreditTurn("A", "x", "A", 0.0, False, num_tokens=2, entropy=h) for h in entropies)
            )
            for entropies in trajectories
        ),
    )


def credit(*totals: list[float], tokens: tuple[tuple[list[float], ...], ...] | None = None) -> Credit:
    arrays = tuple(np.array(x) for x in totals)
    return Credit(
        traj_adv=np.zeros(len(arrays)),
        step_adv=arrays,
        coverage=tuple(np.ones(len(x), dtype=np.int8) for x in arrays),
        total=arrays,
        state_value={},
        diagnostics={"coverage": 1.0},
        token_total=None if tokens is None else tuple(tuple(np.array(x) for x in turns) for turns in tokens),
    )


def test_aem_weighs_confident_turns_more() -> None:
    # exp(-[0, .5, 1]) = [1, .6065, .3679], mean .6581.
    (got,) = modulate([group(ENTROPY)], [credit([1.0, 1.0, 1.0])], [AEMConfig()])
    np.testing.assert_allclose(got.total[0], ALPHA, atol=5e-5, rtol=0)
    assert got.step_adv[0].tolist() == [1.0, 1.0, 1.0]
    assert got.diagnostics == pytest.approx({"coverage": 1.0, "aem_weight_max": 1.5194}, abs=5e-5)


def test_aem_normalises_within_each_group_over_all_its_trajectories() -> None:
    groups = [group((0.2,), (0.5, 0.8)), group((2.0, 5.0, 8.0))]
    credits = [credit([1.0], [1.0, -1.0]), credit([1.0, 1.0, 1.0])]
    first, second = modulate(groups, credits, [AEMConfig()])
    np.testing.assert_allclose(np.concatenate(first.total), [1.5194, 0.9216, -0.5590], atol=5e-5, rtol=0)
    np.testing.assert_allclose(second.total[0], ALPHA, atol=5e-5, rtol=0)


def test_aem_leaves_a_group_of_nearly_equal_entropies_alone() -> None:
    close, wide = credit([1.0, 2.0]), credit([1.0, 2.0])
    got = modulate([group((0.5, 0.59)), group((0.5, 0.61))], [close, wide], [AEMConfig()])
    assert got[0].total[0].tolist() == [1.0, 2.0]
    assert got[1].total[0].tolist() != [1.0, 2.0]


def test_every_token_gets_what_its_turn_gets() -> None:
    tokens = (([1.0, -2.0], [3.0, 0.0], [1.0, 1.0]),)
    (got,) = modulate([group(ENTROPY)], [credit([-0.5, 1.5, 1.0], tokens=tokens)], [AEMConfig()])
    assert got.token_total is not None
    expected = [[1.5194, -3.0388], [2.7647, 0.0], [0.5590, 0.5590]]
    np.testing.assert_allclose(got.token_total[0], expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(got.total[0], np.mean(expected, axis=1), atol=1e-4, rtol=0)


@given(
    turns=st.lists(
        st.lists(st.tuples(st.floats(0, 12), st.floats(-100, 100)), min_size=1, max_size=6), min_size=1, max_size=5
    ),
    sharpness=st.floats(0.01, 20),
)
def test_aem_changes_no_sign(turns: list[list[tuple[float, float]]], sharpness: float) -> None:
    played = group(*(tuple(h for h, _ in trajectory) for trajectory in turns))
    before = credit(*([a for _, a in trajectory] for trajectory in turns))
    (after,) = modulate([played], [before], [AEMConfig(sharpness=sharpness)])
    for x, y in zip(before.total, after.total, strict=True):
        assert np.all(np.isfinite(y))
        # a factor of e^-20 takes the smallest numbers of all to 0
        assert np.all((np.sign(x) == np.sign(y)) | (np.abs(x) < 1e-290))


def test_empg_adds_a_bonus_for_a_clear_next_turn_and_centres_the_batch() -> None:
    # Before centring [1.5498, .9400, .5590], mean 1.0163.
    (got,) = modulate([group(ENTROPY)], [credit([1.0, 1.0, 1.0])], [EMPGConfig()])
    np.testing.assert_allclose(got.total[0], [0.5335, -0.0763, -0.4573], atol=6e-5, rtol=0)
    assert got.diagnostics["empg_weight_max"] == pytest.approx(1.5194, abs=5e-5)
    # The known pitfall: equal positive advantages, and the uncertain turns end up punished.
    assert np.sign(got.total[0]).tolist() == [1.0, -1.0, -1.0]


def test_empg_looks_at_the_whole_batch_but_at_the_next_turn_of_the_same_trajectory_only() -> None:
    groups = [group((0.2,), (0.5,)), group((0.8,))]
    got = modulate(groups, [credit([1.0], [1.0]), credit([1.0])], [EMPGConfig()])
    # Every turn is a last one, so no bonus: alpha less its mean of 1.
    np.testing.assert_allclose(np.concatenate(got[0].total), [0.5194, -0.0784], atol=5e-5, rtol=0)
    np.testing.assert_allclose(got[1].total[0], [-0.4410], atol=5e-5, rtol=0)


def test_empg_centres_tokens_over_tokens() -> None:
    tokens = (([1.0, 1.0], [1.0, 1.0], [1.0, 1.0]),)
    (got,) = modulate([group(ENTROPY)], [credit([1.0, 1.0, 1.0], tokens=tokens)], [EMPGConfig()])
    assert got.token_total is not None
    np.testing.assert_allclose(got.token_total[0], [[x, x] for x in got.total[0]], atol=1e-12)


def test_empg_only_centres_a_batch_of_equal_entropies() -> None:
    (got,) = modulate([group((0.5, 0.5))], [credit([1.0, 3.0])], [EMPGConfig()])
    assert got.total[0].tolist() == [-1.0, 1.0]


def test_modulators_are_applied_in_order() -> None:
    groups, credits = [group(ENTROPY)], [credit([1.0, 1.0, 1.0])]
    (both,) = modulate(groups, credits, [AEMConfig(), EMPGConfig(bonus=0.0)])
    alpha = modulate(groups, credits, [AEMConfig()])[0].total[0]
    np.testing.assert_allclose(both.total[0], alpha**2 - np.mean(alpha**2), atol=1e-12)
    (reversed_order,) = modulate(groups, credits, [EMPGConfig(bonus=0.0), AEMConfig()])
    assert reversed_order.total[0].tolist() != both.total[0].tolist()


def test_without_modulators_credits_come_back_as_they_are_and_no_entropy_is_read() -> None:
    before = credit([1.0])
    assert modulate([group((None,))], [before], []) == [before]
    assert modulate([], [], [AEMConfig(), EMPGConfig()]) == []


@pytest.mark.parametrize("modulator", [AEMConfig(), EMPGConfig()])
def test_a_turn_without_entropy_is_refused_by_name(modulator: ModulatorConfig) -> None:
    with pytest.raises(ValueError, match="group g, trajectory 1, turn 1: no entropy; the learner must compute it"):
        modulate([group((0.1,), (0.2, None))], [credit([1.0], [1.0, 1.0])], [modulator])


def test_groups_and_credits_must_match() -> None:
    with pytest.raises(ValueError, match="2 groups with 1 credits"):
        modulate([group((0.1,)), group((0.2,))], [credit([1.0])], [AEMConfig()])


def test_modulators_add_the_entropy_to_what_a_strategy_needs() -> None:
    plain, shaped = StarPO(StarPOConfig()), PBRS(PBRSConfig(potential="value"))
    assert needs(plain, ()) == frozenset()
    assert needs(plain, (AEMConfig(),)) == {"entropy"}
    assert needs(shaped, (EMPGConfig(),)) == {"critic", "entropy"}


def test_a_config_names_its_modulators_in_a_list() -> None:
    values = tomllib.loads('modulators = [{ name = "aem", sharpness = 2 }, { name = "empg" }]')
    assert StarPOConfig(**values).modulators == (AEMConfig(sharpness=2.0), EMPGConfig())
    assert StarPOConfig().modulators == ()


@pytest.mark.parametrize("wrong", [{"name": "epo"}, {"sharpness": 1.0}, {"name": ["aem"]}, "aem"])
def test_the_error_about_an_unknown_modulator_names_the_known_ones(wrong: object) -> None:
    with pytest.raises(ValidationError, match=r'a known name: \{ name = "aem" \} or \{ name = "empg" \}'):
        StarPOConfig(modulators=[wrong])


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "aem", "sharpness": 0.0},
        {"name": "aem", "bonus": 0.1},
        {"name": "empg", "bonus": float("inf")},
    ],
)
def test_modulators_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        StarPOConfig(modulators=[wrong])
