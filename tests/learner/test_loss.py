import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from milepost.learner import offpolicy
from milepost.learner.loss import LossConfig, Policies, denominator, policy_loss, surrogate, token_logprobs
from milepost.learner.pack import MicroBatch
from milepost.learner.sample import NO_TURN, Sample


def micro_batch(advantages: list[list[float]], rollout: list[list[float]], lengths: list[list[int]]) -> MicroBatch:
    """Every token is trained, except where its turn length is 0."""
    turn_lengths = torch.tensor(lengths)
    return MicroBatch(
        input_ids=torch.ones_like(turn_lengths),
        attention_mask=torch.ones_like(turn_lengths),
        loss_mask=turn_lengths > 0,
        advantages=torch.tensor(advantages),
        rollout_logprobs=torch.tensor(rollout),
        versions=torch.zeros_like(turn_lengths),
        turn_lengths=turn_lengths,
        turn_index=torch.where(turn_lengths > 0, 0, NO_TURN),
        value_mask=turn_lengths < 0,
        value_targets=torch.zeros(turn_lengths.shape),
    )


def one_token(*, rollout: float, proximal: float, current: float, config: LossConfig) -> tuple[float, float]:
    """Loss and gradient of one token with advantage 1."""
    theta = torch.tensor([[current]], requires_grad=True)
    batch = micro_batch([[1.0]], [[rollout]], [[1]])
    terms = policy_loss(batch, Policies(theta, torch.tensor([[proximal]])), config=config, total=1.0)
    terms.loss.backward()
    assert theta.grad is not None
    return terms.loss.item(), theta.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "has_gradient"),
    [(1.5, 1, -1.28, False), (1.5, -1, 1.5, True), (0.5, 1, -0.5, True), (0.5, -1, 0.8, False), (5.0, -1, 3.0, False)],
)
def test_the_clip_table(ratio: float, advantage: float, loss: float, has_gradient: bool):
    ratios = torch.tensor([ratio], requires_grad=True)
    losses = surrogate(ratios, torch.tensor([float(advantage)]), LossConfig())
    losses.sum().backward()
    assert losses.item() == pytest.approx(loss)
    assert ratios.grad is not None
    assert (ratios.grad.item() != 0) is has_gradient


def test_decoupled_ratios_keep_a_gradient_that_clipping_around_the_rollout_policy_kills():
    config = LossConfig(clip_low=0.2, clip_high=0.2)
    loss, gradient = one_token(rollout=-1.0, proximal=-0.8, current=-0.7, config=config)
    assert loss == pytest.approx(-1.3499, abs=1e-4)
    assert gradient == pytest.approx(-1.3499, abs=1e-4)
    naive, dead = one_token(rollout=-1.0, proximal=-1.0, current=-0.7, config=config)
    assert naive == pytest.approx(-1.2)
    assert dead == 0


def test_the_importance_weight_is_capped_and_a_band_sets_it_to_zero():
    far = {"rollout": -3.0, "proximal": -1.0, "current": -1.0}
    assert one_token(**far, config=LossConfig(importance_cap=2.0))[0] == pytest.approx(-2.0)
    assert one_token(**far, config=LossConfig(ratio_band=(0.5, 5.0))) == (0.0, 0.0)


@pytest.mark.parametrize(("aggregation", "expected"), [("token", 10 / 6), ("turn", 1.75)])
def test_token_losses_1_3_and_2_2_2_0_aggregate(aggregation: str, expected: float):
    config = LossConfig(aggregation=aggregation)
    losses = [[1.0, 3.0, 9.0, 9.0], [2.0, 2.0, 2.0, 0.0]]
    batch = micro_batch([[-x for x in row] for row in losses], [[0.0] * 4] * 2, [[2, 2, 0, 0], [4, 4, 4, 4]])
    total = denominator([as_sample(batch, row) for row in range(2)], config.aggregation)
    assert total == pytest.approx(6 if aggregation == "token" else 2)
    logprobs = torch.zeros(2, 4)
    assert policy_loss(batch, Policies(logprobs, logprobs), config=config, total=total).loss.item() == pytest.approx(
        expected
    )


def as_sample(batch: MicroBatch, row: int) -> Sample:
    """The row behind an untrained first token, as real samples have one."""

    def column(values: torch.Tensor, first: float) -> torch.Tensor:
        return torch.cat([torch.tensor([first], dtype=values.dtype), values[row]])

    return Sample(
        group_id="g",
        index=row,
        token_ids=column(batch.input_ids, 0).numpy(),
        loss_mask=column(batch.loss_mask, 0).numpy(),
        advantages=column(batch.advantages, 0).numpy(),
        rollout_logprobs=column(batch.rollout_logprobs, 0).numpy(),
        versions=column(batch.versions, 0).numpy(),
        turn_lengths=column(batch.turn_lengths, 0).numpy(),
        turn_index=column(batch.turn_index, NO_TURN).numpy(),
        value_mask=column(batch.value_mask, 0).numpy(),
        value_targets=column(batch.value_targets, 0).numpy(),
    )


def test_masked_tokens_get_no_gradient_even_if_they_are_not_finite():
    theta = torch.tensor([[-1.0, float("nan"), -2.0]], requires_grad=True)
    batch = micro_batch([[1.0, 7.0, -1.0]], [[-1.0, float("inf"), -2.0]], [[2, 0, 2]])
    terms = policy_loss(batch, Policies(theta, theta), config=LossConfig(), total=2.0)
    terms.loss.backward()
    assert theta.grad is not None
    assert theta.grad.tolist() == [[-0.5, 0.0, 0.5]]


def test_a_dummy_stays_in_the_graph_with_zero_gradient():
    theta = torch.zeros(1, 2, requires_grad=True)
    batch = micro_batch([[0.0, 0.0]], [[0.0, 0.0]], [[0, 0]])
    terms = policy_loss(batch, Policies(theta, theta), config=LossConfig(), total=3.0)
    terms.loss.backward()
    assert theta.grad is not None
    assert theta.grad.tolist() == [[0.0, 0.0]]
    assert set(terms.sums.values()) == {0.0}


def test_kl_to_the_reference_is_k3_and_pulls_towards_it():
    theta = torch.tensor([[-1.0]], requires_grad=True)
    batch = micro_batch([[0.0]], [[-1.0]], [[1]])
    reference = torch.tensor([[-0.5]])
    terms = policy_loss(batch, Policies(theta, theta, reference), config=LossConfig(kl_coef=0.1), total=1.0)
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(0.1 * (math.exp(0.5) - 1 - 0.5), rel=1e-5)
    assert theta.grad is not None
    assert theta.grad.item() == pytest.approx(0.1 * (1 - math.exp(0.5)), rel=1e-5)
    assert terms.sums["reference_kl"] == pytest.approx(0.1487, abs=1e-4)


def test_clip_counts_name_the_bound_that_cut():
    ratios = torch.tensor([[1.5, 1.5, 0.5, 0.5, 5.0]])
    batch = micro_batch([[1.0, -1.0, 1.0, -1.0, -1.0]], [[0.0] * 5], [[5] * 5])
    sums = policy_loss(batch, Policies(ratios.log(), torch.zeros(1, 5)), config=LossConfig(), total=5.0).sums
    assert (sums["clipped_high"], sums["clipped_low"], sums["clipped_dual"]) == (1, 1, 1)
    assert sums["ratio"] == pytest.approx(9.0)


def test_log_probs_are_those_of_the_tempered_distribution():
    logits = torch.tensor([[[2.0, 0.0, 1.0]]])
    logprobs, entropies = token_logprobs(logits, torch.tensor([[2]]), temperature=0.5)
    weights = [math.exp(4), 1.0, math.exp(2)]
    probabilities = [w / sum(weights) for w in weights]
    assert logprobs.item() == pytest.approx(math.log(probabilities[2]), rel=1e-5)
    assert entropies.item() == pytest.approx(-sum(p * math.log(p) for p in probabilities), rel=1e-5)
    assert token_logprobs(torch.zeros(1, 1, 8), torch.tensor([[3]]), 1.0)[1].item() == pytest.approx(math.log(8))


def test_mismatch_numbers_of_four_tokens():
    log_ratios = torch.tensor([0.1, 1.2, -0.5, 2.0], dtype=torch.float64)
    ratios = log_ratios.exp().tolist()
    assert ratios == pytest.approx([1.1052, 3.3201, 0.6065, 7.3891], abs=1e-4)
    assert offpolicy.truncated_weights(log_ratios, 2.0).tolist() == pytest.approx([1.1052, 2, 0.6065, 2], abs=1e-4)
    kept = (log_ratios.exp() * offpolicy.band_mask(log_ratios, 0.5, 5.0)).tolist()
    assert kept == pytest.approx([1.1052, 3.3201, 0.6065, 0], abs=1e-4)
    assert offpolicy.k3(log_ratios).tolist() == pytest.approx([0.0052, 1.1201, 0.1065, 4.3891], abs=1e-4)
    mismatch = offpolicy.Mismatch.of(log_ratios, cap=2.0, band=(0.5, 5.0))
    assert mismatch.mean_k3 == pytest.approx(1.4052, abs=1e-4)
    assert mismatch.chi2 == pytest.approx(15.80, abs=5e-3)
    assert mismatch.effective_sample_share == pytest.approx(0.5739, abs=1e-4)
    assert (mismatch.truncated_share, mismatch.masked_share) == (0.5, 0.25)


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=20))
def test_weights_of_any_mismatch_are_finite(differences: list[float]):
    log_ratios = offpolicy.log_ratio(torch.tensor(differences), torch.zeros(len(differences)))
    assert torch.isfinite(log_ratios.exp()).all()
    assert (offpolicy.truncated_weights(log_ratios, 2.0) <= 2).all()
    assert (offpolicy.k3(log_ratios) >= -1e-6).all()


@pytest.mark.parametrize("band", [(1.5, 5.0), (0.5, 0.9), (-1.0, 2.0)])
def test_a_band_that_does_not_hold_one_is_refused(band: tuple[float, float]):
    with pytest.raises(ValidationError, match="low < 1 < high"):
        LossConfig(ratio_band=band)
