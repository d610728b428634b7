"""What is known of transformers' model families, by their configuration alone.

A family is known when tests compare it with the model's own code; of others nothing is assumed.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import torch

from milepost.learner.batch.pack import Packing
from milepost.learner.zero.output_layer import LogitRule

KNOWN: Final = frozenset(
    {
        *("bloom", "cohere", "falcon", "gemma", "gemma2", "gemma3_text", "glm4", "gpt2", "gpt_neox", "granite"),
        *("llama", "mistral", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3"),
    }
)
"""Model types whose log-probs follow from the last hidden states, the output layer and a `LogitRule`."""
_OWN_ATTENTION: Final = frozenset({"bloom", "falcon"})


def packing_for(config: Any, wanted: Packing | Literal["auto"], device: torch.device) -> Packing:
    """How the rows of a model of this configuration are packed on `device`: as `wanted`, where it can take a tree."""
    if wanted == "auto":
        wanted = "tree" if device.type == "cpu" else "padded"
    return "padded" if tree_obstacle(config) else wanted


def tree_obstacle(config: Any) -> str | None:
    """Why a model of this configuration cannot take a prefix tree; None if it can.

    A tree needs full causal attention by transformers' attention interface, and positions that are given.
    """
    if config.model_type not in KNOWN:
        return f"nobody compared the family {config.model_type!r} (docs/models.md)"
    if config.model_type in _OWN_ATTENTION:
        return f"the family {config.model_type!r} computes attention in its own way"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "its attention caps its logits"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None) is not None:
        return "its attention looks back through a window"
    return None


def remarks_on(config: Any, packing: Packing | Literal["auto"]) -> list[str]:
    """What training a model of this configuration on this machine costs more than need be, and why."""
    said, obstacle = [], tree_obstacle(config)
    if packing == "auto" and not obstacle and torch.cuda.is_available():
        obstacle = 'trees were never measured on a GPU; learner.packing = "tree" tries them'
    if packing != "padded" and obstacle:
        said.append(f"rows are padded, and prefixes that they share pass through the model once per row: {obstacle}")
    if config.model_type in KNOWN:
        return said
    return [
        *said,
        f"the learner does not know the family {config.model_type!r} (docs/models.md): logits of all trained tokens of "
        "a micro-batch are in memory at once; where that is too much, lower learner.max_tokens_per_micro_batch",
    ]


def logit_rule(config: Any) -> LogitRule | None:
    """What the family of `config` makes of its output layer's numbers; None where it is not known."""
    if config.model_type not in KNOWN:
        return None
    scale = getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    return LogitRule(scale, getattr(config, "final_logit_softcapping", None))
