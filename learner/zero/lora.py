"""LoRA in a policy by peft: adapters are put in, switched off for a while, and written as peft keeps them.

They lie in the model itself (`inject_adapter_in_model`), so that every other part of the learner sees the model that it
knows. What was there before is frozen, embeddings and output layer always. Adapters have no dropout: log-probs must not
depend on chance. peft is loaded by the first call alone.

Source: Hu et al., LoRA (arXiv 2106.09685); B starts at zero, so a policy begins as its base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from milepost.learner.lora import ALL_LINEAR, LoraConfig, LoraError
from milepost.learner.zero.policy import load_config

ADAPTER_FILE: Final = "adapter_model.safetensors"
"""peft's name for it."""


def add_adapters(policy: Any, config: LoraConfig) -> list[str]:
    """Freeze a model that `load_policy` gave and put adapters into it; the names of the layers that got one.

    Raises:
        LoraError: a target is no linear layer of it, or its output layer.
    """
    from peft import inject_adapter_in_model

    output, targets = policy.get_output_embeddings(), set(config.target_modules) - {ALL_LINEAR}
    linear = {name: module for name, module in policy.named_modules() if type(module) is nn.Linear}
    found = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in targets}
    if unknown := sorted(target for target, names in found.items() if not names):
        kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in linear))
        raise LoraError(f"lora.target_modules names {', '.join(unknown)}; linear layers here: {', '.join(kinds)}")
    if any(linear[name] is output for names in found.values() for name in names):
        raise LoraError("lora.target_modules names the output layer, which stays frozen; leave it out")
    inject_adapter_in_model(_peft_config(config), policy)
    layers = _layers(policy)
    if others := sorted({type(layer.base_layer).__name__ for layer in layers.values()} - {"Linear"}):
        kind = policy.config.model_type
        raise LoraError(
            f"lora.rank = {config.rank}: layers of the family {kind!r} are {others[0]}, and only linear "
            "ones get adapters; set lora.rank = 0, or take a model of another family"
        )
    return list(layers)


def adapters_of(folder: Path, config: LoraConfig) -> list[str]:
    """Names of the layers that would get adapters in the model of `folder`; no weights are made. Raises LoraError."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(folder), trust_remote_code=False)
    return add_adapters(model, config)


@contextmanager
def switched_off(module: nn.Module) -> Iterator[None]:
    """Within the block `module` computes what its base does. No gradient is computed in it."""
    layers = _layers(module).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def saved_name(name: str) -> str:
    """A parameter's name in the files of a policy: of an adapter's that in peft's file, of others their own.

    >>> saved_name("model.layers.0.mlp.up_proj.lora_A.default.weight")
    'base_model.model.model.layers.0.mlp.up_proj.lora_A.weight'
    """
    if ".lora_" not in name:
        return name
    return f"base_model.model.{name.replace('.default.weight', '.weight')}"


def layout_of(config: LoraConfig, base: str) -> dict[str, Any]:
    """What a checkpoint says of its adapters, and of the weights that they were trained on; nothing without any."""
    return {"lora": config.model_dump(mode="json"), "base": base} if config.rank else {}


def require_base(saved: Mapping[str, Any], base: str, *, folder: Path) -> None:
    """Raises LoraError for a checkpoint whose adapters were trained on another policy than `base`."""
    if base and saved.get("base", base) != base:
        raise LoraError(
            f"the adapters in {folder} were trained on another policy than the run's first one is here: bring that "
            "one back, or start a new run"
        )


def write_adapters(weights: Mapping[str, Tensor], config: LoraConfig, *, base: Path, folder: Path) -> None:
    """Write adapters, by their saved names, as a folder that peft loads onto the model in `base`."""
    folder.mkdir(parents=True, exist_ok=True)
    told = _peft_config(config)
    told.base_model_name_or_path, told.inference_mode = str(base), True
    told.save_pretrained(str(folder))
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        folder / ADAPTER_FILE,
        metadata={"format": "pt"},
    )


def _peft_config(config: LoraConfig) -> Any:
    """What peft calls these settings."""
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=ALL_LINEAR if ALL_LINEAR in config.target_modules else list(config.target_modules),
    )


def _layers(module: nn.Module) -> dict[str, Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}
