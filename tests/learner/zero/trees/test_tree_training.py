"""Prefix trees against padded rows: attention, log-probs, the whole objective and its gradients, and what it saves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from milepost.learner.batch.pack import MicroBatch, Packing, collate, plan
from milepost.learner.batch.sample import NO_TURN, Sample
from milepost.learner.batch.tree import distinct_tokens, prefix_tree
from milepost.learner.loss.entropy import EntropyConfig, num_turns
from milepost.learner.loss.loss import Policies, denominator
from milepost.learner.loss.objective import Entropies, Objective, objective_terms
from milepost.learner.zero.policy import load_policy
from milepost.learner.zero.token_policy import TokenPolicy, token_scores
from milepost.learner.zero.tree_attention import tree_attention, tree_options
from milepost.learner.zero.value import Critic, critic_values
from tests.learner.closeness import differ
from tests.learner.tiny_llama import save_tiny_llama

OBJECTIVE = Objective(entropy=EntropyConfig(coef=0.1))
ROWS = st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=9), min_size=1, max_size=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def policies(folder: Path) -> dict[Packing, TokenPolicy]:
    """The same weights for both packings, with a value head."""
    found: dict[Packing, TokenPolicy] = {}
    for packing in ("padded", "tree"):
        torch.manual_seed(0)
        found[packing] = TokenPolicy(load_policy(folder, packing), valued=True)
        torch.nn.init.normal_(found[packing].head.weight, std=0.1)
        with torch.no_grad():
            for weight in found[packing].policy.parameters():  # moderate, so that rounding stays below what is asked
                weight.mul_(0.5)
    return found


def sample(tokens: list[int], group: str, draw: np.random.Generator) -> Sample:
    """Tokens of which some, never the first, were sampled in random turns, with advantages of their own."""
    turns = np.sort(draw.integers(NO_TURN, 2, len(tokens)))
    turns[0] = NO_TURN
    found = Sample.from_turn_index(
        turns.tolist(),
        advantages=draw.normal(size=len(tokens)).tolist(),
        rollout_logprobs=draw.normal(-3, 0.3, len(tokens)).tolist(),
        group_id=group,
    )
    found.token_ids[:] = tokens
    return found


def grouped(lists: list[list[int]]) -> list[Sample]:
    draw = np.random.default_rng(len(lists))
    return [sample(tokens, "ab"[k % 2], draw) for k, tokens in enumerate(lists)]


@given(ROWS, st.integers(0, 99))
@settings(max_examples=30)
def test_attention_over_a_tree_is_that_of_a_mask_of_ancestors(lists: list[list[int]], seed: int) -> None:
    tree = prefix_tree([np.array(row) for row in lists])
    count, draw = len(tree.token_ids), torch.Generator().manual_seed(seed)
    seen = torch.zeros(count, count, dtype=torch.bool)
    for row, nodes in zip(lists, tree.nodes, strict=True):
        for last in range(len(row)):
            seen[nodes[last], nodes[: last + 1]] = True
    query, key, value, given_gradient = (
        torch.randn(1, count, heads, 8, generator=draw).transpose(1, 2).requires_grad_() for heads in (4, 2, 2, 4)
    )
    options = tree_options(tree.branches, query.device)
    ours, _ = tree_attention(torch.nn.Module(), query, key, value, None, scaling=0.4, **options)
    ours = ours.transpose(1, 2)
    theirs = scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=0.4, enable_gqa=True)
    assert differ([ours], [theirs]) < 1e-5
    gradients = [torch.autograd.grad(out, (query, key, value), given_gradient) for out in (ours, theirs)]
    assert differ(*gradients) < 1e-5


def trained(policy: TokenPolicy, micro_batches: list[MicroBatch], pool: list[Sample]) -> tuple[Any, ...]:
    """Loss, gradients and, by row, log-probs, entropies and estimates at the trained tokens."""
    policy.zero_grad()
    total, loss, rows = denominator(pool, OBJECTIVE.loss), 0.0, dict[bytes, list[torch.Tensor]]()
    for batch in micro_batches:
        logprobs, entropies, values = token_scores(policy, batch, 0.8, entropy_gradient=True)
        proximal = logprobs.detach() - 0.3 * torch.sin(batch.advantages)
        seen = Entropies(entropies, None, num_turns(pool))
        terms = objective_terms(batch, Policies(logprobs, proximal), seen, objective=OBJECTIVE, total=total)
        part = terms.loss + (values * batch.loss_mask * batch.advantages).sum()
        part.backward()
        loss += part.item()
        for row in batch.loss_mask.any(1).nonzero().flatten().tolist():
            mask = batch.loss_mask[row]
            name = batch.advantages[row][mask].numpy().tobytes()  # no two rows have the same advantages
            rows[name] = [found[row][mask].detach() for found in (logprobs, entropies, values)]
    return loss, [parameter.grad.clone() for parameter in policy.parameters()], rows


@given(ROWS, st.integers(4, 40), st.integers(1, 3))
@settings(max_examples=20)
def test_trees_have_the_loss_and_gradients_of_padded_rows(
    policies: dict[Packing, TokenPolicy], lists: list[list[int]], max_tokens: int, num_ranks: int
) -> None:
    pool = grouped(lists)
    padded = trained(policies["padded"], [collate(pool)], pool)
    ranks = plan(pool, num_ranks=num_ranks, max_tokens=max_tokens, packing="tree")
    tree = trained(policies["tree"], [collate(batch, "tree") for batches in ranks for batch in batches], pool)
    assert tree[0] == pytest.approx(padded[0], rel=1e-5, abs=1e-5)
    assert differ(tree[1], padded[1]) < 1e-5
    for row, numbers in tree[2].items():
        assert differ(numbers, padded[2][row]) < 1e-5


def test_a_response_that_two_samples_share_gets_the_weights_of_both(policies: dict[Packing, TokenPolicy]) -> None:
    found = {}
    for packing, policy in policies.items():
        pair = [Sample.from_turn_index([-1, 0, 0], advantages=[0.0, a, a]) for a in (1.0, 3.0)]
        batch = collate(pair, packing)
        policy.zero_grad()
        logprobs = token_scores(policy, batch, 1.0)[0]
        assert logprobs[0].tolist() == pytest.approx(logprobs[1].tolist(), abs=1e-6)
        (logprobs * batch.advantages).sum().backward()
        found[packing] = policy.policy.lm_head.weight.grad.clone()
    assert torch.allclose(found["tree"], found["padded"], atol=1e-5)
    assert found["tree"].abs().max() > 1e-3


def test_each_distinct_token_passes_through_the_model_once(policies: dict[Packing, TokenPolicy]) -> None:
    draw, passed = np.random.default_rng(0), []
    pool = []
    for number, group in enumerate("abc"):
        prompt = [number, *draw.integers(0, 16, 20).tolist()]
        answers = [draw.integers(0, 3, draw.integers(2, 9)).tolist() for _ in range(8)]
        pool += [sample(prompt + answer, group, draw) for answer in answers]
    hook = (
        policies["tree"]
        .policy.get_input_embeddings()
        .register_forward_pre_hook(lambda _, inputs: passed.append(inputs[0].numel()))
    )
    (batches,) = plan(pool, num_ranks=1, max_tokens=100, packing="tree")
    with torch.no_grad():
        for batch in batches:
            token_scores(policies["tree"], collate(batch, "tree"), 1.0)
    hook.remove()
    distinct = sum(distinct_tokens([s.token_ids for s in pool if s.group_id == group]) for group in "abc")
    assert len(passed) > 1
    assert sum(passed) / distinct == 1.0
    assert distinct < 0.5 * sum(map(len, pool))


def test_layers_that_are_computed_again_see_the_same_tree(folder: Path) -> None:
    batch, gradients = collate(grouped([[0, 1, 2, 1], [0, 1, 0], [1, 2]]), "tree"), []
    for again in (False, True):
        model = load_policy(folder, "tree").train()
        if again:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        token_scores(TokenPolicy(model), batch, 1.0)[0].sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


def test_a_critic_of_its_own_reads_trees_too(folder: Path) -> None:
    pool, found = grouped([[0, 1, 2, 1], [0, 1, 0], [0, 1]]), []
    for packing in ("padded", "tree"):
        critic = Critic(load_policy(folder, packing))
        torch.manual_seed(0)
        torch.nn.init.normal_(critic.head.weight)
        found.append(critic_values(critic, collate(pool, packing)))
    assert torch.allclose(*found, atol=1e-5)
    assert found[0].any()


def test_a_dummy_tree_keeps_every_parameter_in_the_graph(policies: dict[Packing, TokenPolicy]) -> None:
    policy = policies["tree"]
    policy.zero_grad()
    logprobs, _, values = token_scores(policy, collate([], "tree"), 1.0)
    (logprobs.sum() + values.sum()).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in policy.parameters())
