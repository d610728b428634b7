import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from milepost.learner.batch.segments import segments
from milepost.learner.loss import surrogate
from tests.learner.loss.token_batches import token_batch


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def gradient(loss: Tensor, of: Tensor) -> list[float]:
    (found,) = torch.autograd.grad(loss.sum(), of)
    return found.tolist()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "has_gradient"),
    [(1.5, 1, -1.28, False), (1.5, -1, 1.5, True), (0.5, 1, -0.5, True), (0.5, -1, 0.8, False), (5.0, -1, 3.0, False)],
)
def test_the_clip_table(ratio: float, advantage: float, loss: float, has_gradient: bool):
    ratios = leaf(ratio)
    losses = surrogate.clipped(ratios, torch.tensor([float(advantage)]), low=0.2, high=0.28, dual=3.0)
    assert losses.item() == pytest.approx(loss)
    assert (gradient(losses, ratios) != [0]) is has_gradient


def test_cispo_bounds_the_weight_and_keeps_the_gradient():
    logprobs = leaf(-2.0, -2.0)
    ratios = torch.tensor([5.0, 0.1])
    losses = surrogate.cispo(ratios, logprobs, torch.tensor([1.0, -1.0]), low=0.2, high=0.28)
    assert losses.tolist() == pytest.approx([2.56, -1.6])
    assert gradient(losses, logprobs) == pytest.approx([-1.28, 0.8])


def test_sapo_gates_softly_with_slope_one_at_ratio_one():
    ratios = leaf(1.5, 1.0)
    losses = surrogate.sapo(ratios, torch.ones(2), tau_positive=1.0, tau_negative=1.05)
    assert losses[0].item() == pytest.approx(-2.4898, abs=5e-5)
    slopes = gradient(losses, ratios)
    assert slopes[1] == pytest.approx(-1)
    assert 0 < -slopes[0] < 1


@given(st.floats(0.1, 5), st.floats(0.1, 5))
def test_the_slope_of_sapo_at_ratio_one_is_the_advantage_for_every_sharpness(positive: float, negative: float):
    ratios = leaf(1.0, 1.0)
    losses = surrogate.sapo(ratios, torch.tensor([2.0, -3.0]), tau_positive=positive, tau_negative=negative)
    assert gradient(losses, ratios) == pytest.approx([-2, 3])


def test_sapo_closes_earlier_for_a_negative_advantage():
    ratios = leaf(3.0, 3.0)
    losses = surrogate.sapo(ratios, torch.tensor([1.0, -1.0]), tau_positive=1.0, tau_negative=4.0)
    up, down = gradient(losses, ratios)
    assert abs(down) < abs(up)


@pytest.mark.parametrize(
    ("logs", "ratio"), [([0.1, -0.2, 0.3], 1.06894), ([0.02, -0.01, 0.05], 1.0202)], ids=["StepPO", "GSPO"]
)
def test_the_geometric_ratio_of_a_turn(logs: list[float], ratio: float):
    batch = token_batch(turns=[[0, 0, 0]], advantages=[[1.0] * 3])
    current = torch.tensor(logs, dtype=torch.float64)
    found = surrogate.geometric_ratios(current, torch.zeros(3, dtype=torch.float64), segments(batch, "turn"))
    assert found.tolist() == pytest.approx([ratio] * 3, abs=5e-5)


def test_turns_of_a_row_have_their_own_ratio_and_a_row_has_one():
    batch = token_batch(turns=[[-1, 0, 0, 1], [0, 1, 1, -1]], advantages=[[1.0] * 4] * 2)
    current = torch.tensor([0.1, 0.3, 1.0, 0.5, 0.2, 0.4], dtype=torch.float64)
    nothing = torch.zeros(6, dtype=torch.float64)
    by_turn = surrogate.geometric_ratios(current, nothing, segments(batch, "turn"))
    assert by_turn.log().tolist() == pytest.approx([0.2, 0.2, 1.0, 0.5, 0.3, 0.3])
    by_row = surrogate.geometric_ratios(current, nothing, segments(batch, "sequence"))
    assert by_row.log().tolist() == pytest.approx([1.4 / 3] * 3 + [1.1 / 3] * 3)


def test_the_token_form_has_the_gradient_of_the_geometric_mean():
    batch = token_batch(turns=[[0, 0, 0]], advantages=[[1.0] * 3])
    current, proximal = leaf(0.1, -0.2, 0.3), torch.zeros(3, dtype=torch.float64)
    token_form = surrogate.geometric_ratios(current, proximal, segments(batch, "turn")).mean()
    whole = (current - proximal).mean().exp()
    assert gradient(token_form, current) == pytest.approx(gradient(whole, current))


def test_in_the_token_form_a_token_of_advantage_zero_gets_no_gradient():
    batch = token_batch(turns=[[0, 0]], advantages=[[1.0] * 2])
    current = leaf(0.1, -0.2)
    ratios = surrogate.geometric_ratios(current, torch.zeros(2, dtype=torch.float64), segments(batch, "turn"))
    assert gradient(ratios * torch.tensor([1.0, 0.0]), current) == pytest.approx([math.exp(-0.05), 0])


def test_kl_estimators_of_a_token_twice_as_likely_as_before():
    current, reference = leaf(math.log(0.5)), torch.tensor([math.log(0.25)], dtype=torch.float64)
    found = {name: surrogate.kl_to_reference(current, reference, name) for name in ("k1", "k2", "k3")}
    assert found["k1"].item() == pytest.approx(math.log(2))
    assert found["k2"].item() == pytest.approx(0.5 * math.log(2) ** 2)
    assert found["k3"].item() == pytest.approx(0.5 - 1 + math.log(2))
    slopes = {name: gradient(value, current)[0] for name, value in found.items()}
    assert slopes == pytest.approx({"k1": math.log(2), "k2": math.log(2), "k3": 0.5})


def test_the_mean_gradient_of_k1_and_k2_over_samples_is_that_of_the_kl():
    logits = leaf(0.3, -0.2, 0.5)
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    current = logits.log_softmax(0)
    probabilities = current.exp()
    exact = gradient((probabilities * (current - reference)).sum(), logits)
    for estimator in ("k1", "k2"):
        current = logits.log_softmax(0)
        sampled = probabilities.detach() * surrogate.kl_to_reference(current, reference, estimator)
        assert gradient(sampled, logits) == pytest.approx(exact)
