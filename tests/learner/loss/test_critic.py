"""The value loss by hand, and real networks that say it."""

import dataclasses
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from milepost.learner.batch.pack import MicroBatch, collate
from milepost.learner.loss.critic import CriticConfig, critic_metrics, value_loss
from milepost.learner.loss.loss import LossTerms
from milepost.learner.update_metrics import add
from milepost.learner.zero.policy import batch_logprobs, load_policy
from milepost.learner.zero.token_policy import TokenPolicy, ValueHead, token_scores, token_values
from milepost.learner.zero.value import Critic, critic_values
from tests.learner.loss.token_batches import token_batch
from tests.learner.tiny_llama import save_tiny_llama


def targeted(targets: list[list[float | None]]) -> MicroBatch:
    """`[B, L]` targets, None where there is none; every token but the first is sampled."""
    turns = [[-1] + [0] * (len(row) - 1) for row in targets]
    batch = token_batch(turns=turns, advantages=[[0.0] * len(row) for row in targets])
    known = torch.tensor([[target is not None for target in row] for row in targets])
    numbers = torch.tensor([[target or 0.0 for target in row] for row in targets])
    return dataclasses.replace(batch, value_mask=known, value_targets=numbers)


def loss_of(batch: MicroBatch, values: Tensor, *, total: float = 1.0) -> LossTerms:
    return value_loss(batch, values, torch.zeros_like(values), clip=None, total=total)


BATCH = targeted([[None, 1.0, None, 0.0]])


def test_the_loss_is_half_the_squared_error_at_targets_over_the_total():
    values = torch.tensor([[7.0, 0.5, 9.0, 2.0]], requires_grad=True)
    terms = loss_of(BATCH, values, total=4.0)
    assert terms.loss.item() == pytest.approx((0.125 + 2.0) / 4)
    terms.loss.backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0.0, -0.125, 0.0, 0.5]], "(V - R) / 4, and exactly 0 without a target"


def test_a_clipped_estimate_gains_nothing_by_moving_further():
    values = torch.tensor([[0.0, 0.5, 0.0, 2.0]], requires_grad=True)
    old = torch.tensor([[0.0, 0.0, 0.0, 1.9]])
    terms = value_loss(BATCH, values, old, clip=0.2, total=1.0)
    # first: 0.5 may count as 0.2 only, (0.2 - 1)^2 = 0.64 > 0.25; second moved by 0.1 and the wrong way: 2^2
    assert terms.loss.item() == pytest.approx(0.32 + 2.0)
    terms.loss.backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0.0, 0.0, 0.0, pytest.approx(2.0)]]


def test_micro_batches_add_up_and_a_dummy_adds_nothing_but_keeps_the_graph():
    rows = [[None, 1.0, None, 0.0], [None, 0.25, 0.5, None]]
    values = torch.tensor([[0.0, 0.5, 9.0, 2.0], [0.0, 1.0, -1.0, 4.0]])
    whole = loss_of(targeted(rows), values, total=4.0)
    parts = [loss_of(targeted([row]), values[k : k + 1], total=4.0) for k, row in enumerate(rows)]
    dummy = torch.zeros(1, 2, requires_grad=True)
    parts.append(loss_of(collate([]), dummy, total=4.0))
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item())
    sums: dict[str, float] = {}
    for part in parts:
        add(sums, part.sums)
    assert sums == pytest.approx(whole.sums)
    parts[-1].loss.backward()
    assert dummy.grad is not None
    assert not dummy.grad.any()


def test_explained_variance_by_hand():
    batch = targeted([[None, 0.0, 1.0]])
    metrics = critic_metrics(loss_of(batch, torch.tensor([[0.0, 0.0, 0.5]])).sums)
    assert metrics["explained_variance"] == pytest.approx(1 - 0.0625 / 0.25)
    assert metrics["value_loss"] == pytest.approx(0.5 * 0.25 / 2)
    shifted = critic_metrics(loss_of(batch, torch.tensor([[0.0, 5.0, 6.0]])).sums)
    assert shifted["explained_variance"] == pytest.approx(1.0), "a constant error is no variance"


def test_targets_without_variance_have_no_explained_variance_and_no_target_no_number():
    constant = loss_of(targeted([[None, 0.1, 0.1, 0.1]]), torch.zeros(1, 4))
    assert critic_metrics(constant.sums) == {"value_loss": pytest.approx(0.005)}
    assert critic_metrics(loss_of(targeted([[None, None]]), torch.zeros(1, 2)).sums) == {}


def test_a_warm_up_of_a_shared_trunk_is_refused():
    with pytest.raises(ValidationError, match='needs trunk = "own"'):
        CriticConfig(trunk="shared", warmup_updates=3)


def test_epochs_of_a_shared_trunk_are_refused():
    with pytest.raises(ValidationError, match='needs trunk = "own"'):
        CriticConfig(trunk="shared", epochs=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


def tokens(rows: list[list[int]], batch: MicroBatch) -> MicroBatch:
    return dataclasses.replace(batch, input_ids=torch.tensor(rows))


def seeing(head: ValueHead) -> None:
    """Make the head depend on what the trunk says."""
    torch.manual_seed(0)
    torch.nn.init.normal_(head.weight)


def test_an_estimate_sees_the_context_and_nothing_of_its_token(folder: Path):
    critic = Critic(load_policy(folder))
    seeing(critic.head)
    batch = targeted([[None, None, None, None]])
    first, second = (critic_values(critic, tokens([row], batch)) for row in ([1, 2, 3, 4], [1, 2, 9, 4]))
    assert first[0, 1:3].tolist() == second[0, 1:3].tolist(), "before the changed token nothing changes"
    assert abs(first[0, 3] - second[0, 3]) > 1e-3
    with torch.no_grad():
        hidden = critic.trunk(input_ids=torch.tensor([[1, 2, 3, 4]])).last_hidden_state
        expected = critic.head(hidden)
    assert first[0, 1:].tolist() == pytest.approx(expected[0, :3].tolist(), abs=1e-5)


def test_a_head_on_the_policy_leaves_its_log_probs_alone(folder: Path):
    policy = load_policy(folder)
    valued = TokenPolicy(policy, valued=True)
    batch = tokens([[1, 2, 3, 4], [5, 6, 7, 8]], targeted([[None] * 4] * 2))
    plain = batch_logprobs(policy, batch, 0.7)
    assert not token_scores(valued, batch, 0.7)[2].any(), "untrained it says 0"
    seeing(valued.head)
    logprobs, entropies, values = token_scores(valued, batch, 0.7)
    assert torch.equal(logprobs, plain[0])
    assert torch.equal(entropies, plain[1])
    assert torch.allclose(values, token_values(valued, batch), atol=1e-6)
    critic = Critic(load_policy(folder))
    critic.head.load_state_dict(valued.head.state_dict())
    assert torch.allclose(values, critic_values(critic, batch), atol=1e-5), "both kinds start from the same trunk"


def test_a_critic_learns_constant_targets(folder: Path):
    critic = Critic(load_policy(folder))
    batch = tokens([[1, 2, 3, 4], [5, 6, 7, 8]], targeted([[None, 0.7, 0.7, None], [None, 0.7, None, 0.7]]))
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        terms = loss_of(batch, critic_values(critic, batch), total=4.0)
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
        losses.append(terms.loss.item())
    assert losses[0] == pytest.approx(0.5 * 0.49)
    assert losses[-1] < 1e-3
    assert critic_values(critic, batch)[batch.value_mask].tolist() == pytest.approx([0.7] * 4, abs=0.1)
