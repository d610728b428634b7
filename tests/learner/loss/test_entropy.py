import math

import pytest
import torch
from pydantic import ValidationError

from milepost.learner.loss.entropy import (
    EntropyConfig,
    UsualEntropy,
    band_penalties,
    entropy_loss,
    num_turns,
    turn_sums,
)
from milepost.learner.loss.loss import LossConfig
from tests.learner.loss.token_batches import token_batch

EPO = EntropyConfig(coef=0.001, band=(0.8, 1.2), penalty=0.1, smoothing=1.0)
BATCH = token_batch(turns=[[-1, 0, 0, 0]], advantages=[[0.0] * 4])


def entropies(*values: float) -> torch.Tensor:
    """Of the three trained tokens of BATCH; what is not trained is not a number."""
    return torch.tensor([[math.nan, *values]], requires_grad=True)


def test_penalties_of_three_tokens_around_a_usual_entropy_of_one_half():
    found = band_penalties(torch.tensor([0.3, 0.5, 0.9]), torch.full((3,), 0.5), band=(0.8, 1.2), penalty=0.1)
    assert found.tolist() == pytest.approx([0.1, 0, 0.1])


def test_the_loss_of_bonus_and_band():
    current = entropies(0.3, 0.5, 0.9)
    usual = torch.full((1, 4), 0.5)
    terms = entropy_loss(BATCH, current, usual, config=EPO, loss=LossConfig(), total=3.0)
    assert terms.loss.item() == pytest.approx(-0.001 * (1.7 / 3 - 0.2 / 3))
    assert terms.sums == {"entropy_outside": 2.0}


def test_the_band_pushes_back_from_both_sides_and_the_bonus_up():
    current = entropies(0.3, 0.5, 0.9)
    config = EPO.model_copy(update={"coef": 3.0, "smoothing": 20.0})
    entropy_loss(BATCH, current, torch.full((1, 4), 0.5), config=config, loss=LossConfig(), total=3.0).loss.backward()
    assert current.grad is not None
    assert current.grad.tolist() == [[0.0, pytest.approx(-3.0), pytest.approx(-1.0), pytest.approx(1.0)]]


def test_the_bonus_alone_is_the_mean_entropy():
    current = entropies(0.3, 0.5, 0.9)
    terms = entropy_loss(BATCH, current, None, config=EntropyConfig(coef=0.1), loss=LossConfig(), total=3.0)
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(-0.1 * 1.7 / 3)
    assert current.grad is not None
    assert current.grad.tolist() == [[0.0, *[pytest.approx(-0.1 / 3)] * 3]]
    assert terms.sums == {}


def test_a_turn_that_was_never_seen_has_no_band():
    current = entropies(0.3, 0.5, 0.9)
    usual = torch.full((1, 4), math.nan)
    terms = entropy_loss(BATCH, current, usual, config=EPO, loss=LossConfig(), total=3.0)
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(-0.001 * 1.7 / 3)
    assert current.grad is not None
    assert torch.isfinite(current.grad).all()


def test_the_usual_entropy_is_a_moving_average_per_turn_index():
    usual = UsualEntropy(memory=0.75)
    index = torch.tensor([[-1, 0, 0, 1, 2]])
    assert usual.of(index).isnan().all()
    usual.learn({"turn_entropy_0": 3.0, "turn_tokens_0": 2.0, "turn_entropy_1": 0.0, "turn_tokens_1": 0.0, "x": 9.0})
    assert usual.of(index)[0, 1:3].tolist() == [1.5, 1.5]
    assert usual.of(index)[0, [0, 3, 4]].isnan().all()
    usual.learn({"turn_entropy_0": 1.0, "turn_tokens_0": 2.0, "turn_entropy_1": 2.0, "turn_tokens_1": 1.0})
    assert usual.of(index)[0, 1:4].tolist() == [0.75 * 1.5 + 0.25 * 0.5] * 2 + [2.0]
    usual.learn({})
    assert usual.of(index)[0, 3].item() == 2.0


def test_sums_by_turn_add_up_over_micro_batches():
    batch = token_batch(turns=[[-1, 0, 0, 2], [-1, 0, -1, -1]], advantages=[[0.0] * 4] * 2)
    current = torch.tensor([[9.0, 0.5, 0.25, 1.0], [9.0, 1.0, 9.0, 9.0]])
    assert turn_sums(batch, current, 4) == {
        **{"turn_entropy_0": 1.75, "turn_entropy_1": 0.0, "turn_entropy_2": 1.0, "turn_entropy_3": 0.0},
        **{"turn_tokens_0": 3.0, "turn_tokens_1": 0.0, "turn_tokens_2": 1.0, "turn_tokens_3": 0.0},
    }
    assert num_turns([]) == 0


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [({"band": (1.1, 1.2), "coef": 0.1}, "low < 1 < high"), ({"band": (0.8, 1.2)}, "no effect with coef = 0")],
)
def test_a_band_that_cannot_work_is_refused(settings: dict[str, object], complaint: str):
    with pytest.raises(ValidationError, match=complaint):
        EntropyConfig(**settings)
