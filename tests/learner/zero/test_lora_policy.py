"""Adapters in one policy: what is frozen, what they compute over trees and in layers run twice, what is refused."""

import doctest
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from milepost.learner.batch.pack import MicroBatch, Packing, collate
from milepost.learner.batch.sample import Sample
from milepost.learner.lora import LoraConfig, LoraError
from milepost.learner.zero import lora
from milepost.learner.zero.lora import adapters_of, add_adapters, switched_off
from milepost.learner.zero.policy import load_policy
from milepost.learner.zero.token_policy import TokenPolicy, token_scores
from tests.learner.closeness import differ
from tests.learner.tiny_llama import save_tiny_llama

CONFIG = LoraConfig(rank=3, alpha=6.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


def adapted(folder: Path, packing: Packing = "padded", *, moved: bool = True, again: bool = False) -> TokenPolicy:
    """A policy with adapters; `moved`: as after some training, with B no longer zero."""
    torch.manual_seed(0)
    model = load_policy(folder, packing).train()
    add_adapters(model, CONFIG)
    if again:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and moved:
                parameter.normal_(std=0.1)
    return TokenPolicy(model)


def batch(packing: Packing = "padded") -> MicroBatch:
    """Three rows of which two share a prefix, with trained tokens of different weight."""
    rows = [([0, 1, 2, 1], 1.0), ([0, 1, 0], -2.0), ([1, 2], 0.5)]
    samples = []
    for tokens, advantage in rows:
        found = Sample.from_turn_index([-1] + [0] * (len(tokens) - 1), advantages=[advantage] * len(tokens))
        found.token_ids[:] = tokens
        samples.append(found)
    return collate(samples, packing)


def gradients(policy: TokenPolicy, packing: Packing) -> dict[str, torch.Tensor]:
    made = batch(packing)
    (token_scores(policy, made, 1.0)[0] * made.advantages).sum().backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def test_a_policy_begins_as_its_base_and_is_it_again_while_adapters_are_off(folder: Path) -> None:
    base = token_scores(TokenPolicy(load_policy(folder)), batch(), 1.0)[0]
    assert torch.equal(token_scores(adapted(folder, moved=False), batch(), 1.0)[0], base)
    policy = adapted(folder)
    moved = token_scores(policy, batch(), 1.0)[0]
    assert (moved - base).abs().max() > 1e-2
    with switched_off(policy):
        assert torch.equal(token_scores(policy, batch(), 1.0)[0], base)
    assert torch.equal(token_scores(policy, batch(), 1.0)[0], moved)


def test_adapters_alone_are_trained_by_rows_and_by_trees_alike(folder: Path) -> None:
    padded, tree = (gradients(adapted(folder, packing), packing) for packing in ("padded", "tree"))
    assert padded.keys() == tree.keys()
    assert all(".lora_" in name for name in padded)
    assert len(padded) == 2 * 2 * 7, "two matrices in seven layers of two blocks"
    assert max(float(gradient.abs().max()) for gradient in padded.values()) > 1e-3
    assert differ(list(padded.values()), list(tree.values())) < 1e-5


def test_a_value_head_on_the_trunk_is_trained_beside_the_adapters(folder: Path) -> None:
    model = load_policy(folder)
    add_adapters(model, CONFIG)
    policy = TokenPolicy(model, valued=True)
    token_scores(policy, batch(), 1.0)[2].sum().backward()
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert [name for name in trained if ".lora_" not in name] == ["head.weight", "head.bias"]
    assert policy.head.weight.grad.any()


def test_layers_that_are_computed_again_give_adapters_the_same_gradient(folder: Path) -> None:
    once, again = (gradients(adapted(folder, "tree", again=twice), "tree") for twice in (False, True))
    assert once.keys() == again.keys()
    assert all(torch.allclose(once[name], again[name]) for name in once)


def test_adapters_are_called_as_peft_calls_them_in_files() -> None:
    assert doctest.testmod(lora) == (0, 1)


def test_named_layers_alone_get_adapters(folder: Path) -> None:
    some = LoraConfig(rank=2, target_modules=("q_proj", "layers.1.mlp.up_proj"))
    assert adapters_of(folder, some) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]


@pytest.mark.parametrize(
    ("targets", "complaint"),
    [
        (
            ("q_proj", "wq", "embed_tokens"),
            r"^lora\.target_modules names embed_tokens, wq; linear layers here: q_proj, k",
        ),
        (("q_proj", "lm_head"), r"^lora\.target_modules names the output layer, which stays frozen; leave it out$"),
    ],
)
def test_what_is_no_layer_for_adapters_is_refused_in_one_line(
    folder: Path, targets: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(LoraError, match=complaint) as error:
        adapters_of(folder, LoraConfig(rank=2, target_modules=targets))
    assert "\n" not in str(error.value)


def test_a_family_whose_layers_are_not_linear_is_refused(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(LoraError, match=r"layers of the family 'gpt2' are Conv1D, and only linear ones get adapters"):
        adapters_of(tmp_path, CONFIG)
