"""Tiny random models of many families, each a Hugging Face folder with a tokenizer and a template in its manner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_CONTENT = "{{ m['content'] }}"
_END = "{% endfor %}{% if add_generation_prompt %}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    + _END
    + "<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}" + CHATML
)  # as in Qwen 2.5
DROPS_THOUGHTS = CHATML.replace(
    _CONTENT, "{% if loop.last %}{{ m['content'] }}{% else %}{{ m['content'].split('</think>')[-1] }}{% endif %}"
)  # as in Qwen 3
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n" + _END + "<start_of_turn>model\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>" + _END + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_CORPUS = ["You see two doors, left and right. Answer like <answer>left</answer>. It is locked. You won."] * 20
_POSITIONS = 1024


def _tokenizer(specials: list[str], template: str, **names: str) -> PreTrainedTokenizerFast:
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    bare.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, chat_template=template, model_max_length=_POSITIONS, clean_up_tokenization_spaces=False,
        **names,
    )  # fmt: skip


def chatml(template: str = CHATML) -> PreTrainedTokenizerFast:
    """With the control tokens of Qwen and SmolLM."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return _tokenizer(specials, template, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def gemma_like() -> PreTrainedTokenizerFast:
    """Turns are closed by a token without a name."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return _tokenizer(specials, GEMMA, **names)


def llama3_like() -> PreTrainedTokenizerFast:
    """Headers of messages are tokens without names."""
    headers = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    specials = ["<|begin_of_text|>", "<|end_of_text|>", *headers]
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|end_of_text|>"}
    return _tokenizer(specials, LLAMA3, **names)


@dataclass(frozen=True)
class Family:
    """How a folder of one family is made: transformers' classes by their stem, and what differs in the config."""

    stem: str
    """E.g. `Qwen2` for Qwen2ForCausalLM and Qwen2Config."""
    tied: bool | None = None
    """None: the family's own default."""
    tokenizer: Callable[[], PreTrainedTokenizerFast] = chatml
    config: dict[str, Any] = field(default_factory=dict)
    padded_rows: int = 0
    dtype: torch.dtype = torch.float32
    redundant_head: bool = False
    """The file holds an output head beside the embedding that it is tied to."""


_COMMON = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": _POSITIONS,
}  # fmt: skip
_HEADS = {"num_key_value_heads": 1, "head_dim": 32}
_ONE_KV = {"num_key_value_heads": 1}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1}
_LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256, "rope_theta": 10000.0,
}  # fmt: skip
_GEMMA2 = _HEADS | {"query_pre_attn_scalar": 32, "sliding_window": 64}
_GRANITE = {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.1}

FAMILIES = {
    "bloom": Family("Bloom", config={"n_layer": 2, "n_head": 2}),
    "cohere": Family("Cohere", config=_ONE_KV),
    "falcon": Family("Falcon"),
    "gemma": Family("Gemma", tokenizer=gemma_like, config=_HEADS),
    "gemma2": Family("Gemma2", tokenizer=gemma_like, config=_GEMMA2),
    "gemma3": Family(
        "Gemma3",
        tokenizer=gemma_like,
        config=_GEMMA2 | {"layer_types": ["sliding_attention", "full_attention"]},
    ),
    "glm4": Family("Glm4", tied=False, config=_HEADS),
    "gpt2": Family("GPT2", config={"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": _POSITIONS}),
    "gpt_neox": Family("GPTNeoX", tied=False),
    "granite": Family("Granite", tied=True, config=_ONE_KV | _GRANITE),
    "llama": Family("Llama", tied=False, config=_HEADS | {"attention_bias": True, "mlp_bias": True}),
    "llama3": Family("Llama", tied=True, tokenizer=llama3_like, config=_HEADS | {"rope_parameters": _LLAMA3_ROPE}),
    "mistral": Family("Mistral", tied=False, config=_HEADS | {"sliding_window": 64}),
    "olmo2": Family("Olmo2", tied=False, config=_ONE_KV),
    "opt": Family("OPT", config={"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "phi": Family("Phi", tied=False),
    "phi3": Family("Phi3", tied=False, config=_ONE_KV),
    "qwen2": Family("Qwen2", tied=True, tokenizer=lambda: chatml(DEFAULT_SYSTEM), config=_ONE_KV),
    "qwen2, bfloat16": Family("Qwen2", tied=True, config=_ONE_KV, dtype=torch.bfloat16),
    "qwen2, padded vocabulary": Family("Qwen2", tied=False, config=_ONE_KV, padded_rows=200),
    "qwen2, redundant head": Family("Qwen2", tied=True, config=_ONE_KV, redundant_head=True),
    "qwen2_moe": Family("Qwen2Moe", tied=False, config=_ONE_KV | _MOE | {"shared_expert_intermediate_size": 64}),
    "qwen3": Family("Qwen3", tied=True, config=_HEADS),
    "qwen3, untied": Family("Qwen3", tied=False, config=_HEADS),
    "qwen3_moe": Family("Qwen3Moe", tied=False, config=_HEADS | _MOE),
    "qwen3_moe, redundant head": Family("Qwen3Moe", tied=True, config=_HEADS | _MOE, redundant_head=True),
    "smollm3": Family("SmolLM3", tied=True, config=_ONE_KV),
}  # fmt: skip
_OWN_NAMES = {
    "Bloom": ("intermediate_size", "num_attention_heads", "num_hidden_layers"),
    "Falcon": ("intermediate_size",),
    "GPT2": tuple(_COMMON),
    "OPT": ("intermediate_size",),
}
"""Settings that a family calls otherwise, or has not."""


def write(family: Family, folder: Path) -> Path:
    """Make the model with weights far from uniform, biases included, and write its folder."""
    tokenizer = family.tokenizer()
    common = {name: value for name, value in _COMMON.items() if name not in _OWN_NAMES.get(family.stem, ())}
    tied = {} if family.tied is None else {"tie_word_embeddings": family.tied}
    names = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config_class = "Gemma3TextConfig" if family.stem == "Gemma3" else f"{family.stem}Config"
    config = getattr(transformers, config_class)(
        **common | tied | names | family.config,
        vocab_size=len(tokenizer) + family.padded_rows,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model_class = "GPT2LMHeadModel" if family.stem == "GPT2" else f"{family.stem}ForCausalLM"
    model = getattr(transformers, model_class)(config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim >= 2:
                tensor.normal_(0, 0.15)
            elif "bias" in name:
                tensor.normal_(0, 0.2)
            else:
                tensor.add_(0.1 * torch.randn_like(tensor))
        model.tie_weights()
    model.to(family.dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if family.redundant_head:
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
