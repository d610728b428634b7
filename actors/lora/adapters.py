"""Adapters (LoRA) on their way into an engine: how a file says that it holds them, and how they join their base.

An engine serves whole weights. So what travels are the adapters alone, and an engine's host adds them to the base, the
model folder that they were trained on, which lies there anyway: `W + scale B A`, in float32. The learner computes
`W x + scale B (A x)`; the two differ by rounding.

Not promised: that an edited base is noticed wherever it was edited. Its identity is read off every tensor's first
bytes, so that a large model takes no longer than a small one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

_KEY: Final = "milepost_lora"
_PREFIX: Final = "base_model.model."
"""Of names in adapter files, as peft writes them."""
_A: Final = ".lora_A.weight"
_B: Final = ".lora_B.weight"
_SEEN: Final = 4096
"""Numbers at the beginning of a tensor that its identity is read off."""


class AdapterError(ValueError):
    """Adapters cannot join a base; the message says why."""


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What a file of adapters says of them, beside their tensors."""

    rank: int
    scale: float
    """What the product of an adapter's two matrices is multiplied by."""
    base: str
    """`identity` of the model that they were trained on."""

    def metadata(self) -> dict[str, str]:
        """For the header of a safetensors file."""
        return {"format": "pt", _KEY: json.dumps({"rank": self.rank, "scale": self.scale, "base": self.base})}


def facts_in(path: str | Path) -> AdapterFacts | None:
    """What a safetensors file says of its adapters; None where it holds whole weights."""
    with safe_open(path, framework="pt") as file:
        told = (file.metadata() or {}).get(_KEY)
    return None if told is None else AdapterFacts(**json.loads(told))


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`weight + scale b a` in float32, on the device of `a`.

    Args:
        weight: `[out, in]` of the base.
        a: `[rank, in]`.
        b: `[out, rank]`.

    >>> merged(torch.eye(2), torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0], [3.0]]), 0.5)
    tensor([[1.0000, 0.0000],
            [1.5000, 4.0000]])
    """
    return weight.to(a.device, torch.float32) + scale * (b.float() @ a.float())


class Adapters:
    """Adapters that can join the model in `base`."""

    def __init__(self, base: Path, tensors: Mapping[str, Tensor], scale: float) -> None:
        """`tensors` by the names that peft gives them in a file. Raises AdapterError where one has nothing to join."""
        layers = [name.removesuffix(_A) for name in tensors if name.endswith(_A)]
        self._pairs = {_joins(layer): (tensors[f"{layer}{_A}"], tensors[f"{layer}{_B}"]) for layer in layers}
        self._scale = scale
        require_tensors(base, self._pairs)

    def joined(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        """The tensors of one of the base's files, by their names there, each with its adapter where it has one.

        A tensor is read when it is taken; without an adapter it has the data type of the file.
        """
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  a safetensors file is no mapping
                tensor = file.get_tensor(name)
                yield name, merged(tensor, *self._pairs[name], self._scale) if name in self._pairs else tensor


def require_tensors(base: Path, names: Iterable[str]) -> None:
    """Raises AdapterError unless the model in `base` has a tensor of each name in its files."""
    there = {name for path in weight_files(base) for name in _names_in(path)}
    if missing := sorted(name for name in names if name not in there):
        raise AdapterError(
            f"adapters cannot join the model in {base}: its files hold no tensor {missing[0]}, as its family keeps "
            "weights under other names in files than in memory; set lora.rank = 0, or take a model of another family"
        )


def weight_files(base: Path) -> list[Path]:
    """The safetensors files that make up the model in `base`, as its index names them."""
    index = base / "model.safetensors.index.json"
    if not index.is_file():
        return [base / "model.safetensors"]
    return [base / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]


@cache
def identity(base: Path) -> str:
    """16 hex digits of the model in `base`, read once a process: names, shapes and first numbers of its tensors.

    How they are spread over files does not count.
    """
    told = []
    for path in weight_files(base):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                shape = part.get_shape()
                told.append((name, f"{part.get_dtype()} {shape}", _beginning(part, shape)))
    whole = hashlib.sha256()
    for name, kind, beginning in sorted(told):
        whole.update(f"{name}\0{kind}\0{beginning}\n".encode())
    return whole.hexdigest()[:16]


def _beginning(part: Any, shape: list[int]) -> str:
    """Of a slice of a safetensors file: its first rows, in hex digits."""
    rows = max(1, _SEEN // max(1, math.prod(shape[1:])))
    first: Tensor = part[:rows] if shape else part[...]
    return hashlib.sha256(first.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _names_in(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _joins(layer: str) -> str:
    """The tensor that an adapter is added to: of the layer that peft names in its file."""
    return f"{layer.removeprefix(_PREFIX)}.weight"
