"""The policy loss in numbers computed by hand, and the settings it refuses."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from milepost.learner.batch.pack import MicroBatch
from milepost.learner.batch.sample import Sample
from milepost.learner.loss.loss import LossConfig, Policies, denominator, policy_loss, token_logprobs, turn_weights
from milepost.learner.loss.objective import Objective
from milepost.learner.loss.offpolicy import OffPolicyConfig
from tests.learner.loss.token_batches import token_batch


def one_token(
    *, rollout: float, proximal: float, current: float, config: LossConfig, offpolicy: OffPolicyConfig
) -> tuple[float, float]:
    """Loss and gradient of one token with advantage 1."""
    theta = torch.tensor([[current]], requires_grad=True)
    batch = token_batch(turns=[[0]], advantages=[[1.0]], rollout=[[rollout]])
    policies = Policies(theta, torch.tensor([[proximal]]))
    terms = policy_loss(batch, policies, config=config, offpolicy=offpolicy, total=1.0)
    terms.loss.backward()
    assert theta.grad is not None
    return terms.loss.item(), theta.grad.item()


def test_decoupled_ratios_keep_a_gradient_that_clipping_around_the_rollout_policy_kills():
    settings = {"config": LossConfig(clip_low=0.2, clip_high=0.2), "offpolicy": OffPolicyConfig()}
    loss, gradient = one_token(rollout=-1.0, proximal=-0.8, current=-0.7, **settings)
    assert loss == pytest.approx(-1.3499, abs=5e-5)
    assert gradient == pytest.approx(-1.3499, abs=5e-5)
    naive, dead = one_token(rollout=-1.0, proximal=-1.0, current=-0.7, **settings)
    assert naive == pytest.approx(-1.2)
    assert dead == 0


def test_the_importance_weight_is_capped_and_a_band_sets_it_to_zero():
    far: dict[str, Any] = {"rollout": -3.0, "proximal": -1.0, "current": -1.0, "config": LossConfig()}
    assert one_token(**far, offpolicy=OffPolicyConfig(importance_cap=2.0))[0] == pytest.approx(-2.0)
    assert one_token(**far, offpolicy=OffPolicyConfig(ratio_band=(0.5, 5.0))) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("logs", "advantage", "loss", "alive"),
    [
        ([0.1, -0.2, 0.3], 1.0, -1.0004, False),
        ([0.02, -0.01, 0.05], 1.0, -1.0004, False),
        ([0.1, -0.2, 0.3], -1.0, 1.06894, True),
        ([0.0001, 0.0, 0.0002], 1.0, -1.0001, True),
    ],
)
def test_a_turn_is_clipped_as_one(logs: list[float], advantage: float, loss: float, alive: bool):
    theta = torch.tensor([logs], dtype=torch.float64, requires_grad=True)
    batch = token_batch(turns=[[0, 0, 0]], advantages=[[advantage] * 3])
    config = LossConfig(ratio="turn", aggregation="turn", clip_low=3e-4, clip_high=4e-4)
    policies = Policies(theta, torch.zeros(1, 3, dtype=torch.float64))
    terms = policy_loss(batch, policies, config=config, offpolicy=OffPolicyConfig(), total=1.0)
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(loss, abs=1e-5)
    assert theta.grad is not None
    assert theta.grad.tolist() == [[pytest.approx(-advantage * math.exp(sum(logs) / 3) / 3 if alive else 0)] * 3]
    assert terms.sums["clipped_high"] == (0 if alive else 3)


def test_cispo_keeps_the_gradient_that_clipping_kills():
    settings: dict[str, Any] = {"rollout": -2.0, "proximal": -2 - math.log(5), "current": -2.0}
    offpolicy = OffPolicyConfig(importance="none")
    loss, gradient = one_token(**settings, config=LossConfig(objective="cispo"), offpolicy=offpolicy)
    assert (loss, gradient) == (pytest.approx(2.56), pytest.approx(-1.28))
    assert one_token(**settings, config=LossConfig(), offpolicy=offpolicy) == (pytest.approx(-1.28), 0)


@pytest.mark.parametrize(
    ("aggregation", "max_length", "expected", "total"),
    [
        ("token", 0, 10 / 6, 6),
        ("turn", 0, 1.75, 2),
        ("sequence_token_sum", 0, 5.0, 2),
        ("sequence_token_mean", 0, 1.75, 2),
        ("sequence_token_sum_norm", 8, 0.625, 16),
    ],
)
def test_token_losses_1_3_and_2_2_2_0_aggregate(aggregation: str, max_length: int, expected: float, total: float):
    config = LossConfig.model_validate({"aggregation": aggregation, "max_length": max_length})
    rows = [[9.0, 1.0, 3.0, 9.0, 9.0], [9.0, 2.0, 2.0, 2.0, 0.0]]
    batch = token_batch(turns=[[-1, 0, 0, -1, -1], [-1, 0, 0, 0, 0]], advantages=[[-x for x in row] for row in rows])
    assert denominator([as_sample(batch, row) for row in range(2)], config) == pytest.approx(total)
    logprobs = torch.zeros(2, 5)
    terms = policy_loss(
        batch, Policies(logprobs, logprobs), config=config, offpolicy=OffPolicyConfig(importance="none"), total=total
    )
    assert terms.loss.item() == pytest.approx(expected)


def test_two_turns_of_one_row_count_once_as_a_row_and_twice_as_turns():
    batch = token_batch(turns=[[-1, 0, 1, 1, 1]], advantages=[[0.0, -4.0, -1.0, -2.0, -3.0]])
    logprobs = torch.zeros(1, 5)
    found = {}
    for aggregation in ("turn", "sequence_token_mean"):
        config = LossConfig(aggregation=aggregation)
        total = denominator([as_sample(batch, 0)], config)
        terms = policy_loss(
            batch, Policies(logprobs, logprobs), config=config, offpolicy=OffPolicyConfig(), total=total
        )
        found[aggregation] = terms.loss.item()
    assert found == pytest.approx({"turn": (4 + 2) / 2, "sequence_token_mean": 10 / 4})


def test_a_turn_weighs_in_the_batch_scale_as_it_does_in_the_loss():
    assert turn_weights([1, 3], "token").tolist() == [1, 3]
    assert turn_weights([1, 3], "turn").tolist() == [1, 1]
    assert turn_weights([1, 3], "sequence_token_mean").tolist() == [0.25, 0.75]


def as_sample(batch: MicroBatch, row: int) -> Sample:
    """The row of a hand-made batch, whose first token is not trained."""
    return Sample(
        group_id="g",
        index=row,
        token_ids=batch.input_ids[row].numpy(),
        loss_mask=batch.loss_mask[row].numpy(),
        advantages=batch.advantages[row].numpy(),
        rollout_logprobs=batch.rollout_logprobs[row].numpy(),
        versions=batch.versions[row].numpy(),
        turn_lengths=batch.turn_lengths[row].numpy(),
        turn_index=batch.turn_index[row].numpy(),
        value_mask=batch.value_mask[row].numpy(),
        value_targets=batch.value_targets[row].numpy(),
    )


def test_kl_to_the_reference_is_k3_and_pulls_towards_it():
    theta = torch.tensor([[-1.0]], requires_grad=True)
    batch = token_batch(turns=[[0]], advantages=[[0.0]], rollout=[[-1.0]])
    policies = Policies(theta, theta, torch.tensor([[-0.5]]))
    terms = policy_loss(batch, policies, config=LossConfig(kl_coef=0.1), offpolicy=OffPolicyConfig(), total=1.0)
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(0.1 * (math.exp(0.5) - 1 - 0.5), rel=1e-5)
    assert theta.grad is not None
    assert theta.grad.item() == pytest.approx(0.1 * (1 - math.exp(0.5)), rel=1e-5)
    assert terms.sums["reference_kl"] == pytest.approx(0.1487, abs=1e-4)


@pytest.mark.parametrize(("objective", "counts"), [("clip", (1, 1, 1)), ("cispo", (2, 3, 0)), ("sapo", (0, 0, 0))])
def test_clip_counts_name_the_bound_that_cut(objective: str, counts: tuple[int, int, int]):
    ratios = torch.tensor([[1.5, 1.5, 0.5, 0.5, 5.0]])
    batch = token_batch(turns=[[0] * 5], advantages=[[1.0, -1.0, 1.0, -1.0, -1.0]])
    policies = Policies(ratios.log(), torch.zeros(1, 5))
    config = LossConfig.model_validate({"objective": objective})
    sums = policy_loss(batch, policies, config=config, offpolicy=OffPolicyConfig(), total=5.0).sums
    assert (sums["clipped_low"], sums["clipped_high"], sums["clipped_dual"]) == counts
    assert sums["ratio"] == pytest.approx(9.0)
    assert sums["approx_kl"] == pytest.approx(sum(r - 1 - math.log(r) for r in ratios[0].tolist()), rel=1e-5)


def test_log_probs_are_those_of_the_tempered_distribution():
    logits = torch.tensor([[[2.0, 0.0, 1.0]]])
    logprobs, entropies = token_logprobs(logits, torch.tensor([[2]]), temperature=0.5)
    weights = [math.exp(4), 1.0, math.exp(2)]
    probabilities = [w / sum(weights) for w in weights]
    assert logprobs.item() == pytest.approx(math.log(probabilities[2]), rel=1e-5)
    assert entropies.item() == pytest.approx(-sum(p * math.log(p) for p in probabilities), rel=1e-5)
    assert token_logprobs(torch.zeros(1, 1, 8), torch.tensor([[3]]), 1.0)[1].item() == pytest.approx(math.log(8))


def test_entropies_carry_their_gradient_only_on_request():
    logits = torch.tensor([[[2.0, 0.0, 1.0]]], requires_grad=True)
    target = torch.tensor([[2]])
    without = token_logprobs(logits, target, 1.0)[1]
    found = token_logprobs(logits, target, 1.0, entropy_gradient=True)[1]
    assert not without.requires_grad
    assert found.item() == pytest.approx(without.item(), rel=1e-6)
    found.backward()
    probabilities = logits.detach().softmax(-1)
    assert logits.grad is not None
    expected = -probabilities * (probabilities.log() + without)
    assert logits.grad.flatten().tolist() == pytest.approx(expected.flatten().tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"ratio": "turn"}, "set clip_low = 3e-4 and clip_high = 4e-4"),
        ({"ratio": "sequence", "objective": "cispo", "clip_low": 3e-4}, "never bound a sequence's geometric mean"),
        ({"aggregation": "sequence_token_sum_norm"}, "set both or neither"),
        ({"max_length": 512}, "set both or neither"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], complaint: str):
    with pytest.raises(ValidationError, match=complaint):
        LossConfig.model_validate(settings)


def test_sapo_beside_an_importance_weight_is_refused():
    sapo = LossConfig(objective="sapo")
    with pytest.raises(ValueError, match=r'set offpolicy.importance = "none"'):
        Objective(loss=sapo)
    Objective(loss=sapo, offpolicy=OffPolicyConfig(importance="none"))
