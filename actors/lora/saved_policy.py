"""A policy with its adapters merged, as a plain Hugging Face folder: what everyone but learner and engines reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import safetensors.torch
import torch

from milepost.actors.lora.adapters import Adapters, weight_files

_BESIDE: Final = ("generation_config.json", "model.safetensors.index.json")
"""Files of a model folder that stay as they are."""


def write_merged(base: Path, adapters: Adapters, *, dtype: torch.dtype, copied: Iterable[str], folder: Path) -> None:
    """Write the model in `base` with `adapters` merged into `folder`, file by file.

    Args:
        dtype: of the weights that are written.
        copied: names of files that are taken over where the base has them: its tokenizer's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in weight_files(base):
        tensors = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in adapters.joined(path)
        }
        safetensors.torch.save_file(tensors, folder / path.name, metadata={"format": "pt"})
    told = json.loads((base / "config.json").read_bytes())
    told.pop("torch_dtype", None)
    told["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(told, indent=2))
    for name in (*copied, *_BESIDE):
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
