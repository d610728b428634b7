"""Log-probs, entropies and gradients of every known family against the model's own logits, and what they take."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from milepost.learner.batch.pack import MicroBatch, Packing, collate
from milepost.learner.batch.sample import Sample
from milepost.learner.loss.loss import token_logprobs
from milepost.learner.zero import output_layer
from milepost.learner.zero.families import KNOWN, packing_for
from milepost.learner.zero.output_layer import LogitRule, OutputLayer
from milepost.learner.zero.policy import batch_logprobs, load_policy
from milepost.learner.zero.token_policy import TokenPolicy, token_scores
from milepost.learner.zero.tree_attention import NAME
from tests.families.tiny_models import FAMILIES, write
from tests.learner.closeness import differ
from tests.learner.tiny_llama import save_tiny_llama

TEMPERATURE = 0.8
TRIED = [name for name in FAMILIES if ", " not in name]
"""Those that differ in their code, and not only in how the file is laid out."""
TURNS = [-1, 0, 0, -1, -1, 1, 1, 1], [-1, -1, 0], [-1, 0]


def rows(vocabulary: int, *turns: list[int], packing: Packing = "padded") -> MicroBatch:
    """A micro-batch of random tokens whose trained ones are those with a turn; rows are equal for two tokens."""
    draw, samples = np.random.default_rng(0), []
    for index in turns:
        sample = Sample.from_turn_index(index)
        sample.token_ids[:] = [5, 7, *draw.integers(0, vocabulary, len(sample) - 2)]
        samples.append(sample)
    return collate(samples, packing)


def whole(model: Any, batch: MicroBatch, *, entropy_gradient: bool) -> list[Tensor]:
    """Log-probs and entropies `[N]` of the trained tokens from the model's logits of all positions, with a mask."""
    mask = torch.arange(batch.input_ids.shape[1]) < (batch.turn_index >= 0).long().cumsum(1).argmax(1)[:, None] + 1
    logits = model(input_ids=batch.input_ids, attention_mask=mask.long(), use_cache=False).logits[:, :-1]
    found = token_logprobs(logits, batch.input_ids[:, 1:], TEMPERATURE, entropy_gradient=entropy_gradient)
    return [values[batch.loss_mask[:, 1:]] for values in found]


def gradients(model: Any, found: list[Tensor]) -> list[Tensor]:
    """Of a sum in which every token and both numbers have weights of their own."""
    weights = [torch.linspace(1, 2, len(found[0])), torch.linspace(-1, 1, len(found[0]))]
    total = sum((w * values).sum() for w, values in zip(weights, found, strict=True) if values.requires_grad)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [g for g in torch.autograd.grad(total, parameters, allow_unused=True) if g is not None]


@pytest.mark.parametrize("name", TRIED)
def test_a_known_family_scores_as_its_own_logits_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_TOKENS", 3)  # several chunks, the last one not whole
    model = load_policy(write(FAMILIES[name], tmp_path))
    assert model.config.model_type in KNOWN
    batch = rows(300, *TURNS)
    theirs = whole(model, batch, entropy_gradient=True)
    wanted = gradients(model, theirs)
    ours = token_scores(TokenPolicy(model), batch, TEMPERATURE, entropy_gradient=True)
    found = [values[batch.loss_mask] for values in ours[:2]]
    assert differ(found, theirs) < 1e-5
    assert differ(gradients(model, found), wanted) < 1e-5
    assert not ours[0][~batch.loss_mask].any()
    if packing_for(model.config, "tree", torch.device("cpu")) == "tree":
        model.set_attn_implementation(NAME)
        packed = token_scores(TokenPolicy(model), rows(300, *TURNS, packing="tree"), TEMPERATURE, entropy_gradient=True)
        found = [values[batch.loss_mask] for values in packed[:2]]
        assert differ(found, theirs) < 1e-5
        assert differ(gradients(model, found), wanted) < 1e-5


def test_a_family_that_is_not_known_is_scored_by_its_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milepost.learner.zero.families.KNOWN", frozenset())
    model = load_policy(save_tiny_llama(tmp_path))
    batch = rows(16, [-1, 0, 0, -1, 1], [-1, -1, 0])
    policy = TokenPolicy(model, valued=True)
    torch.nn.init.normal_(policy.head.weight)
    assert type(model.lm_head) is torch.nn.Linear
    logprobs, entropies, values = token_scores(policy, batch, TEMPERATURE, entropy_gradient=True)
    theirs = whole(model, batch, entropy_gradient=True)
    assert differ([logprobs[batch.loss_mask], entropies[batch.loss_mask]], theirs) < 1e-6
    hidden = model.model(input_ids=batch.input_ids).last_hidden_state
    assert torch.allclose(values[:, 1:][batch.loss_mask[:, 1:]], policy.head(hidden)[:, :-1][batch.loss_mask[:, 1:]])


def test_a_dummy_keeps_every_parameter_in_the_graph(tmp_path: Path) -> None:
    model = load_policy(save_tiny_llama(tmp_path))
    logprobs, _ = batch_logprobs(model, collate([]), 1.0)
    logprobs.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_what_stands_after_a_row_does_not_change_it(tmp_path: Path) -> None:
    model = load_policy(save_tiny_llama(tmp_path))
    batch = rows(16, [-1, 0, 0, -1, 1, 1, 1], [-1, 0, 0])
    before, _ = batch_logprobs(model, batch, 1.0)
    batch.input_ids[1, 3:] = 7
    assert torch.equal(batch_logprobs(model, batch, 1.0)[0], before)


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most that is allocated at a time during `call`, above what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    peak = now = 0
    for event in sorted(
        _events(found.profiler.kineto_results.experimental_event_tree()), key=lambda e: e.start_time_ns
    ):
        if event.typed[0] == torch._C._profiler._EventType.Allocation:
            now += event.typed[1].alloc_size
            peak = max(peak, now)
    return peak


def _events(tree: list[Any]) -> Iterator[Any]:
    for event in tree:
        yield event
        yield from _events(event.children)


def test_log_probs_of_many_tokens_take_the_logits_of_one_chunk() -> None:
    vocabulary, tokens, width = 2000, 3 * output_layer.CHUNK_TOKENS, 8
    layer = OutputLayer(torch.nn.Linear(width, vocabulary, bias=False), LogitRule())
    hidden = torch.randn(tokens, width, requires_grad=True)
    targets = torch.arange(tokens) % vocabulary

    def both_passes() -> None:
        logprobs, entropies = layer(hidden, targets, temperature=TEMPERATURE, entropy_gradient=True)
        (logprobs.sum() + entropies.sum()).backward()

    both_passes()  # what is made once
    chunk = 4 * output_layer.CHUNK_TOKENS * vocabulary
    assert peak_bytes(both_passes) < 1.3 * chunk
    with torch.no_grad():
        whole_logits = peak_bytes(lambda: token_logprobs(layer(hidden), targets, TEMPERATURE))
    assert whole_logits > 4 * chunk, "the measure sees what it should"


def test_gradients_of_half_precision_are_summed_over_chunks_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK_TOKENS", 1)
    torch.manual_seed(0)
    width, tokens = 4, 600  # beyond 256 equal numbers a sum in bfloat16 stands still
    plain = torch.nn.Linear(width, 5, bias=True)
    half = OutputLayer(torch.nn.Linear(width, 5, bias=True).to(torch.bfloat16), LogitRule())
    half.load_state_dict(plain.state_dict())
    plain.load_state_dict(half.state_dict())
    hidden, targets = torch.ones(tokens, width), torch.zeros(tokens, dtype=torch.int64)
    half(hidden.bfloat16(), targets)[0].sum().backward()
    token_logprobs(plain(hidden), targets, 1.0)[0].sum().backward()
    for ours, theirs in zip(half.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad.float(), theirs.grad, rtol=0.01)


def test_the_output_layer_goes_on_saying_logits(tmp_path: Path) -> None:
    plain = LlamaForCausalLM(LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                         num_attention_heads=1))  # fmt: skip
    ids = torch.arange(6)[None]
    logits, names = plain(input_ids=ids).logits, [name for name, _ in plain.named_parameters()]
    TokenPolicy(plain)
    assert torch.equal(plain(input_ids=ids).logits, logits)
    assert [name for name, _ in plain.named_parameters()] == names
    plain.save_pretrained(tmp_path)
    assert torch.equal(load_policy(tmp_path)(input_ids=ids).logits, logits)
