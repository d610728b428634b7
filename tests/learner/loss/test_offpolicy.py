import math
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from milepost.learner.batch.pack import MicroBatch
from milepost.learner.loss import offpolicy
from milepost.learner.loss.mismatch import Mismatch
from milepost.learner.loss.offpolicy import OffPolicyConfig
from milepost.learner.update_metrics import add
from tests.learner.loss.token_batches import token_batch

LOGS = [0.1, 1.2, -0.5, 2.0]


def as_tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def one_row(turns: list[int]) -> MicroBatch:
    return token_batch(turns=[turns], advantages=[[1.0] * len(turns)])


def test_weights_and_divergences_of_four_tokens():
    logs = as_tensor(LOGS)
    assert logs.exp().tolist() == pytest.approx([1.1052, 3.3201, 0.6065, 7.3891], abs=5e-5)
    assert offpolicy.truncated_weights(logs, 2.0).tolist() == pytest.approx([1.1052, 2, 0.6065, 2], abs=5e-5)
    assert offpolicy.k3(logs).tolist() == pytest.approx([0.0052, 1.1201, 0.1065, 4.3891], abs=5e-5)


def test_the_band_leaves_out_the_token_outside_of_it():
    config = OffPolicyConfig(ratio_band=(0.5, 5.0), importance_cap=100)
    found = offpolicy.weights(as_tensor(LOGS), one_row([0] * 4), config)
    assert found.tolist() == pytest.approx([1.1052, 3.3201, 0.6065, 0], abs=5e-5)


@pytest.mark.parametrize(("cap", "weight"), [(100.0, 16.4446), (2.0, 2.0)])
def test_a_sequence_weight_is_the_capped_product_of_its_row(cap: float, weight: float):
    batch = token_batch(turns=[[0, 0, 1, 1], [0, -1, -1, -1]], advantages=[[1.0] * 4] * 2)
    config = OffPolicyConfig(importance="sequence", importance_cap=cap)
    found = offpolicy.weights(as_tensor([*LOGS, -0.5]), batch, config)
    assert found.tolist() == pytest.approx([weight] * 4 + [0.6065], abs=1e-4)


def test_without_importance_every_kept_token_weighs_one():
    config = OffPolicyConfig(importance="none", ratio_band=(0.5, 5.0))
    assert offpolicy.weights(as_tensor(LOGS), one_row([0] * 4), config).tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize(("high", "kept"), [(2.0, False), (2.02, True)])
def test_a_turn_is_rejected_by_its_geometric_mean_of_2_0138(high: float, kept: bool):
    config = OffPolicyConfig(importance="none", rejection_band=(0.5, high))
    assert offpolicy.weights(as_tensor(LOGS), one_row([0] * 4), config).tolist() == [float(kept)] * 4


def test_a_rejected_turn_leaves_the_other_turns_of_its_row_alone_but_a_rejected_row_does_not():
    logs = as_tensor([2.0, 0.0, 0.0, 0.0, 0.1])
    batch = token_batch(turns=[[0, 0, 1, 1], [0, -1, -1, -1]], advantages=[[1.0] * 4] * 2)
    by_turn = OffPolicyConfig(importance="none", rejection_band=(0.5, 1.5))
    assert offpolicy.weights(logs, batch, by_turn).tolist() == [0, 0, 1, 1, 1]
    by_row = by_turn.model_copy(update={"rejection_level": "sequence"})
    assert offpolicy.weights(logs, batch, by_row).tolist() == [0, 0, 0, 0, 1]


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=20), st.sampled_from(["token", "sequence", "none"]))
def test_weights_of_any_mismatch_are_finite_and_at_most_the_cap(differences: list[float], importance: str):
    logs = offpolicy.log_ratio(torch.tensor(differences), torch.zeros(len(differences)))
    config = OffPolicyConfig(importance=importance, importance_cap=2.0, rejection_band=(0.1, 10.0))
    found = offpolicy.weights(logs, one_row([0] * len(differences)), config)
    assert torch.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 2
    assert (offpolicy.k3(logs) >= -1e-6).all()


def test_a_version_two_of_three_updates_old_is_interpolated_two_thirds_of_the_way():
    found = offpolicy.approximate_proximal(
        as_tensor([-0.7]), as_tensor([-1.0]), torch.tensor([3]), version=5, progress=1.0
    )
    assert found.item() == pytest.approx(-0.8)


def test_halfway_through_the_update_the_current_policy_is_half_a_version_ahead():
    current = torch.tensor([-0.7, -0.7, -0.7], requires_grad=True)
    rollout, versions = torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([5, 4, 3])
    found = offpolicy.approximate_proximal(current, rollout, versions, version=5, progress=0.5)
    assert found.tolist() == pytest.approx([-1.0, -1.0 + 0.3 / 1.5, -1.0 + 0.3 * 2 / 2.5])
    assert not found.requires_grad


def test_before_the_first_step_the_proximal_policy_is_the_current_one():
    current = torch.tensor([-0.7, -0.2])
    found = offpolicy.approximate_proximal(
        current, torch.tensor([-1.0, -3.0]), torch.tensor([5, 2]), version=5, progress=0.0
    )
    assert found.tolist() == current.tolist()


@pytest.mark.parametrize("band", [(1.5, 5.0), (0.5, 0.9), (-1.0, 2.0)])
@pytest.mark.parametrize("name", ["ratio_band", "rejection_band"])
def test_a_band_that_does_not_hold_one_is_refused(name: str, band: tuple[float, float]):
    with pytest.raises(ValidationError, match=rf"{name} .*low < 1 < high"):
        OffPolicyConfig(**{name: band})


def mismatch(rows: list[list[float]], config: OffPolicyConfig) -> Mismatch:
    """Of log-ratios `rows`, at rollout log-probs of -3, with turns of two tokens."""
    turns = [[k // 2 for k in range(len(row))] for row in rows]
    batch = token_batch(
        turns=turns, advantages=[[0.0] * len(row) for row in rows], rollout=[[-3.0] * len(row) for row in rows]
    )
    return Mismatch.of(batch, torch.tensor(rows, dtype=torch.float64) - 3, config)


def test_mismatch_numbers_of_four_tokens():
    found = mismatch([LOGS], OffPolicyConfig(importance_cap=2.0, ratio_band=(0.5, 5.0))).metrics()
    assert found.pop("probability_correlation", None) is None, "all rollout probabilities are the same"
    assert found["effective_sample_share"] == pytest.approx(0.5739, abs=5e-5)
    assert found["mismatch_k3"] == pytest.approx(1.4052, abs=5e-5)
    mean_log = 2.8 / 4
    assert found == pytest.approx(
        {
            "effective_sample_share": 0.5739,
            "mismatch_k1": -mean_log,
            "mismatch_k3": 1.4052,
            "mismatch_chi2": 15.80,
            "mismatch_chi2_sequence": 16.4446**2 - 1,
            "truncated_share": 0.5,
            "ratio_high_share": 0.25,
            "ratio_low_share": 0.0,
            "masked_share": 0.25,
            "masked_share_sequence": 1.0,
            "perplexity_difference": math.exp(3 - mean_log) - math.exp(3),
        },
        rel=1e-4,
        abs=5e-3,
    )


def test_without_a_band_high_and_low_are_measured_against_the_cap():
    found = mismatch([[0.5, 0.8, -0.5, -0.8]], OffPolicyConfig(importance_cap=2.0)).metrics()
    assert (found["ratio_high_share"], found["ratio_low_share"], found["masked_share"]) == (0.25, 0.25, 0)


def test_a_row_counts_as_masked_where_one_of_its_turns_is_rejected():
    config = OffPolicyConfig(rejection_band=(0.5, 2.0))
    found = mismatch([[2.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], config).metrics()
    assert (found["masked_share"], found["masked_share_sequence"]) == (0.25, 0.5)


def test_the_correlation_of_probabilities_is_pearsons():
    trained, sampled = [0.1, 0.5, 0.4, 0.9], [0.2, 0.4, 0.5, 0.7]
    batch = token_batch(turns=[[0] * 4], advantages=[[0.0] * 4], rollout=[[math.log(q) for q in sampled]])
    batch = replace(batch, rollout_logprobs=batch.rollout_logprobs.double())
    found = Mismatch.of(batch, as_tensor([[math.log(p) for p in trained]]), OffPolicyConfig()).metrics()
    expected = torch.corrcoef(torch.tensor([trained, sampled], dtype=torch.float64))[0, 1].item()
    assert found["probability_correlation"] == pytest.approx(expected)


@given(st.lists(st.lists(st.floats(-2, 2), min_size=4, max_size=4), min_size=2, max_size=6))
def test_sums_of_parts_are_those_of_the_whole(rows: list[list[float]]):
    config = OffPolicyConfig(ratio_band=(0.5, 3.0), rejection_band=(0.6, 2.0))
    added: dict[str, float] = {}
    for part in (rows[:1], rows[1:]):
        add(added, asdict(mismatch(part, config)))
    assert added == pytest.approx(asdict(mismatch(rows, config)))


def test_a_dummy_adds_nothing():
    batch = token_batch(turns=[[-1, -1]], advantages=[[0.0, 0.0]])
    assert set(asdict(Mismatch.of(batch, torch.zeros(1, 2), OffPolicyConfig())).values()) == {0.0}
