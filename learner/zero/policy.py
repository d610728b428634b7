"""The policy as a causal language model: loading, log-probs of a micro-batch, writing it as a Hugging Face folder.

Knows nothing of ranks or optimizers; nothing is ever downloaded and no code from a model folder is run.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from milepost.learner.batch.pack import MicroBatch, Packing
from milepost.learner.zero.token_policy import TokenPolicy, token_scores
from milepost.learner.zero.tree_attention import NAME as TREE_ATTENTION

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)


def load_policy(folder: Path, packing: Packing = "padded", dtype: torch.dtype = torch.float32) -> Any:
    """The model in `dtype` with every dropout at zero: log-probs must not depend on chance.

    Attention that caps its logits (Gemma 2) is computed eagerly: PyTorch's fused one leaves the cap out, silently.
    With `packing` "tree" it computes attention over prefix trees, and over nothing else.

    Raises:
        FileNotFoundError: the folder holds no model; says what is missing.
    """
    disable_progress_bar()
    config = load_config(folder)
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float) and value > 0:
            setattr(config, name, 0.0)
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    return AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        attn_implementation=TREE_ATTENTION if packing == "tree" else "eager" if capped else None,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )


def load_config(folder: Path) -> Any:
    """transformers' configuration of the model in `folder`. Raises FileNotFoundError where there is none."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no model in {folder}: config.json is missing; give a folder in Hugging Face format")
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def batch_logprobs(policy: Any, batch: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies `[B, L]` of the trained tokens, 0 elsewhere, of a model that `load_policy` gave.

    `batch` is packed as the model was loaded for.
    """
    return token_scores(TokenPolicy(policy), batch, temperature)[:2]


def layer_of(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `model.layers.3`; a name without a number stands for itself."""
    parts = name.split(".")
    numbers = [k for k, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else name


def write_policy(module: Any, weights: Mapping[str, Tensor], *, source: Path, folder: Path) -> None:
    """Write `weights` as a folder that transformers and vLLM load, with the tokenizer files of `source`."""
    folder.mkdir(parents=True, exist_ok=True)
    module.save_pretrained(folder, state_dict=dict(weights))
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
