"""The learner computes the model that the folder describes, with the attention that it needs."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from milepost.learner.zero.policy import load_policy


def test_attention_that_caps_its_logits_is_computed_with_the_cap(tiny_policy: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        query_pre_attn_scalar=1,  # logits far above the cap
        attn_logit_softcapping=5.0,
        initializer_range=0.3,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    ids = torch.arange(90)[None] % 384

    def logprobs(model: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(model.eval()(ids).logits, -1)

    capped = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    fused = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="sdpa")
    assert (logprobs(fused) - logprobs(capped)).abs().mean() > 0.01
    assert torch.equal(logprobs(load_policy(tmp_path)), logprobs(capped))
    assert load_policy(tiny_policy).config._attn_implementation == "sdpa"  # the faster one, for all others
