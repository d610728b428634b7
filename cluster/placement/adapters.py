"""Whether the policy of a run can be trained by adapters (LoRA), found before anything starts."""

from __future__ import annotations

from pathlib import Path

from milepost.actors.lora.adapters import AdapterError, require_tensors
from milepost.cluster.base.exits import ConfigError
from milepost.learner.lora import LoraConfig, LoraError
from milepost.learner.zero.lora import adapters_of


def require_adapters(base: Path, config: LoraConfig) -> None:
    """Raises ConfigError unless the policy in `base` can be trained by adapters that engines can join to it."""
    try:
        require_tensors(base, [f"{layer}.weight" for layer in adapters_of(base, config)])
    except (AdapterError, LoraError) as error:
        raise ConfigError(str(error)) from error
