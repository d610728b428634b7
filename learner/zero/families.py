"""What is known of transformers' model families, by their configuration alone.

A family is known when tests compare it with the model's own code; of others nothing is assumed.
"""

from __future__ import annotations

from typing import Any, Final

from milepost.learner.zero.output_layer import LogitRule

KNOWN: Final = frozenset(
    {
        *("bloom", "cohere", "falcon", "gemma", "gemma2", "gemma3_text", "glm4", "gpt2", "gpt_neox", "granite"),
        *("llama", "mistral", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3"),
    }
)
"""Model types whose log-probs follow from the last hidden states, the output layer and a `LogitRule`."""


def remarks_on(config: Any) -> list[str]:
    """What training a model of this configuration costs more than one of a known family."""
    if config.model_type in KNOWN:
        return []
    return [
        f"the learner does not know the family {config.model_type!r} (docs/models.md): logits of all trained tokens of "
        "a micro-batch are in memory at once; where that is too much, lower learner.max_tokens_per_micro_batch"
    ]


def logit_rule(config: Any) -> LogitRule | None:
    """What the family of `config` makes of its output layer's numbers; None where it is not known."""
    if config.model_type not in KNOWN:
        return None
    scale = getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    return LogitRule(scale, getattr(config, "final_logit_softcapping", None))
