"""What holds for every objective, ratio and aggregation: masks, dummies, and sums over micro-batches."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from milepost.envs.types import Task, Trajectory, Turn, VersionSpan
from milepost.learner.batch.pack import MicroBatch, collate
from milepost.learner.batch.sample import Sample, samples
from milepost.learner.loss.loss import LossConfig, Policies, denominator, policy_loss, token_logprobs
from milepost.learner.loss.offpolicy import OffPolicyConfig
from tests.learner.loss.token_batches import token_batch

AGGREGATIONS = ("token", "turn", "sequence_token_sum", "sequence_token_mean", "sequence_token_sum_norm")


EVERY_LOSS = list(product(("clip", "cispo", "sapo"), ("token", "turn", "sequence"), AGGREGATIONS))


GEOMETRIC = {"clip_low": 3e-4, "clip_high": 4e-4}


def loss_config(objective: str, ratio: str, aggregation: str) -> LossConfig:
    bounds = {} if ratio == "token" else GEOMETRIC
    length = 40 if aggregation == "sequence_token_sum_norm" else 0
    return LossConfig.model_validate(
        {"objective": objective, "ratio": ratio, "aggregation": aggregation, "max_length": length, **bounds}
    )


def corrections(objective: str) -> OffPolicyConfig:
    return OffPolicyConfig(
        importance="none" if objective == "sapo" else "token", ratio_band=(0.2, 5.0), rejection_band=(0.7, 1.4)
    )


@pytest.mark.parametrize(("objective", "ratio", "aggregation"), EVERY_LOSS)
def test_masked_tokens_get_exactly_no_gradient_even_if_they_are_not_finite(
    objective: str, ratio: str, aggregation: str
):
    theta = torch.tensor([[math.nan, -1.0, math.nan, -2.0], [0.0, -1.5, -3.0, math.inf]], requires_grad=True)
    batch = token_batch(
        turns=[[-1, 0, -1, 1], [-1, 0, 0, -1]],
        advantages=[[9.0, 1.0, 7.0, -1.0], [math.inf, 0.5, -0.5, math.nan]],
        rollout=[[0.0, -1.0, math.inf, -2.0], [5.0, -1.5, -3.0, math.nan]],
    )
    config, offpolicy = loss_config(objective, ratio, aggregation), corrections(objective)
    reference = torch.full((2, 4), -1.25).masked_fill(~batch.loss_mask, math.nan)
    policies = Policies(theta, theta.detach(), reference)
    with_kl = config.model_copy(update={"kl_coef": 0.1})
    policy_loss(batch, policies, config=with_kl, offpolicy=offpolicy, total=2.0).loss.backward()
    assert theta.grad is not None
    assert theta.grad[~batch.loss_mask].tolist() == [0.0] * 4
    assert (theta.grad[batch.loss_mask] != 0).all()
    assert theta.grad.isfinite().all()


@pytest.mark.parametrize(("objective", "ratio", "aggregation"), EVERY_LOSS)
def test_a_dummy_stays_in_the_graph_with_zero_gradient(objective: str, ratio: str, aggregation: str):
    theta = torch.zeros(1, 2, requires_grad=True)
    batch = collate([])
    config, offpolicy = loss_config(objective, ratio, aggregation), corrections(objective)
    terms = policy_loss(batch, Policies(theta, theta), config=config, offpolicy=offpolicy, total=3.0)
    terms.loss.backward()
    assert theta.grad is not None
    assert theta.grad.tolist() == [[0.0, 0.0]]
    assert set(terms.sums.values()) == {0.0}


VOCABULARY = 12


def episodes() -> list[Sample]:
    """Six samples of one to three turns of one to five tokens, with random advantages."""
    rng = np.random.default_rng(3)
    found = []
    for index in range(6):
        history: list[int] = []
        turns = []
        for step in range(1 + index % 3):
            prompt = [*history, *rng.integers(0, VOCABULARY, 2).tolist()]
            response = rng.integers(0, VOCABULARY, int(rng.integers(1, 6))).tolist()
            history = prompt + response
            turns.append(
                Turn(
                    prompt_ids=prompt,
                    response_ids=response,
                    logprobs=rng.normal(-2.5, 0.2, len(response)).tolist(),
                    versions=[VersionSpan(version=0, start=0, end=len(response))],
                    anchor=str(step),
                    next_anchor=str(step + 1),
                    action="a",
                    reward=0.0,
                )
            )
        task = Task(env="x:Y", seed=0, split="train")
        whole = Trajectory(task=task, group_id="g", index=index, turns=turns, outcome="failure")
        found.extend(samples(whole, rng.normal(0, 1, len(turns)).tolist()))
    return found


def bigram_logprobs(table: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
    """Log-probs `[B, L]` of a model that sees the last token only."""
    logprobs, _ = token_logprobs(table[batch.input_ids[:, :-1]], batch.input_ids[:, 1:], 1.0)
    return torch.nn.functional.pad(logprobs, (1, 0))


def gradient_over(parts: list[list[Sample]], config: LossConfig, offpolicy: OffPolicyConfig) -> torch.Tensor:
    """Of a bigram model's table, added up over micro-batches; the proximal model is another one nearby."""
    generator = torch.Generator().manual_seed(5)
    table = torch.randn(VOCABULARY, VOCABULARY, generator=generator) * 0.1
    spread = 0.3 if config.ratio == "token" else 1e-3
    nearby = table + spread * torch.randn(VOCABULARY, VOCABULARY, generator=generator)
    table.requires_grad_()
    total = denominator([sample for part in parts for sample in part], config)
    for part in parts:
        batch = collate(part)
        policies = Policies(bigram_logprobs(table, batch), bigram_logprobs(nearby, batch))
        policy_loss(batch, policies, config=config, offpolicy=offpolicy, total=total).loss.backward()
    assert table.grad is not None
    return table.grad


@pytest.mark.parametrize(("objective", "ratio", "aggregation"), EVERY_LOSS)
def test_micro_batches_add_up_to_the_gradient_of_one_batch(objective: str, ratio: str, aggregation: str):
    config, offpolicy, pool = loss_config(objective, ratio, aggregation), corrections(objective), episodes()
    whole = gradient_over([pool], config, offpolicy)
    parts = gradient_over([pool[4:], [pool[0]], [], pool[1:4]], config, offpolicy)
    assert whole.abs().max() > 1e-3
    assert (whole - parts).abs().max() < 1e-6
