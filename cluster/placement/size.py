"""How large a model is, read off its configuration alone: weights need not be there, and none are made.

Parameters are counted exactly, on PyTorch's meta device. The widths serve estimates of activations; of a mixture of
experts they are those of one expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from milepost.cluster.base.exits import ConfigError
from milepost.learner.first_policy.config import WarmupConfig
from milepost.learner.first_policy.warmup import llama_config
from milepost.learner.lora import LoraConfig, LoraError
from milepost.learner.zero.lora import add_adapters


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Counts that memory follows from."""

    parameters: int
    """Tied weights once."""
    layers: int
    hidden: int
    intermediate: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    adapters: int = 0
    """Parameters of LoRA's adapters, which alone are trained where there are any."""

    @property
    def trained(self) -> int:
        """Parameters of the policy that get gradients and optimizer state."""
        return self.adapters or self.parameters


def size_of_folder(folder: Path, lora: LoraConfig) -> ModelSize:
    """Of the model whose config.json lies in `folder`, and of its adapters. Raises ConfigError."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return _size(config, lora)
    except ConfigError:
        raise
    except Exception as error:  # values of anybody's, and each family judges its own
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"model.path: the size of {folder} cannot be read off its config.json ({reason}); name a folder of a "
            "causal language model that transformers knows"
        ) from error


def size_of_warmup(config: WarmupConfig, lora: LoraConfig) -> ModelSize:
    """Of the small model that a run makes itself, with the largest vocabulary it may get. Raises ConfigError."""
    return _size(llama_config(config, config.vocab_size), lora)


def _size(config: Any, lora: LoraConfig) -> ModelSize:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        parameters = sum(tensor.numel() for tensor in model.parameters())
        try:
            if lora.rank:
                add_adapters(model, lora)
        except LoraError as error:
            raise ConfigError(str(error)) from error
    text = config.get_text_config()
    heads = text.num_attention_heads
    return ModelSize(
        parameters=parameters,
        adapters=sum(tensor.numel() for tensor in model.parameters()) - parameters,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocabulary=text.vocab_size,
    )
