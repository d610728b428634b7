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

from milepost.learner.batch.pack import MicroBatch
from milepost.learner.loss.loss import token_logprobs

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


def load_policy(folder: Path) -> Any:
    """The model in float32 with every dropout at zero: log-probs must not depend on chance.

    Attention that caps its logits (Gemma 2) is computed eagerly: PyTorch's fused one leaves the cap out, silently.

    Raises:
        FileNotFoundError: the folder holds no model; says what is missing.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no model in {folder}: config.json is missing; give a folder in Hugging Face format")
    disable_progress_bar()
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float) and value > 0:
            setattr(config, name, 0.0)
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    return AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        attn_implementation="eager" if capped else None,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )


def batch_logprobs(
    model: Any, batch: MicroBatch, temperature: float, *, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies `[B, L]` at the positions of the trained tokens; elsewhere they mean nothing.

    The output layer runs only over the columns that need it. Entropies carry a gradient only if asked to.
    """
    columns = predicting_columns(batch)
    logits = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, logits_to_keep=columns
    ).logits
    return placed_logprobs(logits, columns, batch, temperature=temperature, entropy_gradient=entropy_gradient)


def predicting_columns(batch: MicroBatch) -> Tensor:
    """`[K]` columns in which some row predicts a trained token.

    A dummy has one, so that every parameter stays in the graph.
    """
    columns = batch.loss_mask[:, 1:].any(0).nonzero().squeeze(1)
    if columns.numel() == 0:
        columns = torch.zeros(1, dtype=torch.int64, device=batch.input_ids.device)
    return columns


def placed_logprobs(
    logits: Tensor, columns: Tensor, batch: MicroBatch, *, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies `[B, L]` from the logits `[B, K, V]` at `predicting_columns`."""
    targets = batch.input_ids[:, columns + 1]
    logprobs, entropies = token_logprobs(logits, targets, temperature, entropy_gradient=entropy_gradient)
    return placed(logprobs, columns, batch), placed(entropies, columns, batch)


def placed(values: Tensor, columns: Tensor, batch: MicroBatch) -> Tensor:
    """`[B, K]` numbers said at `columns`, as `[B, L]` at the tokens they are about: one further; 0 elsewhere."""
    return values.new_zeros(batch.input_ids.shape).index_copy(1, columns + 1, values)


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
