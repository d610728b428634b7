"""Weights into a running vLLM engine through vLLM's own weight-transfer interface.

By file: a safetensors file that the engine's own process has verified, in the memory of its host, whichever way it came
there; it is opened before the model is touched. A file of adapters joins the base that lies on this host. Works on CPU
and GPU. By NCCL: see `milepost.actors.nccl`.

`WeightDigests` lets engines be compared with each other afterwards.

vLLM loads `register` in each of its processes through the `vllm.general_plugins` entry point of this distribution.
"""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
    layerwise_groups,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.platforms import current_platform

from milepost.actors.lora.adapters import AdapterError, AdapterFacts, Adapters, facts_in, identity, weight_files

FILE, NCCL = "milepost_file", "milepost_nccl"
"""What vLLM knows our backends by."""
_PR_SET_PDEATHSIG = 1


@dataclass
class FileInit(WeightTransferInitInfo):  # type: ignore[misc]
    """What does not change from file to file."""

    base: str = ""
    """Folder of the model that adapters join; empty where whole weights come."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """One set of weights, whole or adapters: where it lies."""

    path: str


class FileTransfer(WeightTransferEngine[FileInit, FileUpdate]):  # type: ignore[misc]
    """Worker side: opened first, loaded at `finish_weight_update` only."""

    init_info_cls = FileInit
    update_info_cls = FileUpdate

    _staged: Iterable[tuple[str, torch.Tensor]] | None = None
    _base: Path | None = None

    def init_transfer_engine(self, init_info: FileInit) -> None:
        """There is no rendezvous to make; the base is where the folder lies."""
        self._base = Path(init_info.base) if init_info.base else None

    def start_weight_update(self) -> None:
        """Forget what an update that never finished has left."""
        self._staged = None

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Open and stage, with the model untouched. Raises where it is no safetensors file, or adapters of no base."""
        facts = facts_in(update_info.path)
        if facts is not None:
            self._staged = self._joined(update_info.path, facts)
        else:
            self._staged = list(safetensors.torch.load_file(update_info.path).items())

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As the base class, without its device synchronisation: staging stays on the host."""
        self.receive_weights(self.parse_update_info(update_info))

    def finish_weight_update(self) -> None:
        """Load what is staged. vLLM repacks linear weights at load, hence its layer-wise reload around it."""
        # vLLM imports its model loader late in a worker's life; importing it at plug-in time is circular.
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        if self._staged is None:
            raise RuntimeError("finish_weight_update without weights")
        staged, self._staged = self._staged, None
        _forget_packed_experts(self.model)
        initialize_layerwise_reload(self.model)
        self.model.load_weights(iter(staged))
        finalize_layerwise_reload(self.model, self.model_config)
        _repack_tied_heads(self.model)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _joined(self, path: str, facts: AdapterFacts) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole weights, made one tensor at a time as they are loaded; on a GPU, there.

        Raises AdapterError at once for adapters of another base than this engine's.
        """
        if self._base is None:
            raise AdapterError(f"{path} holds adapters, and this engine was told of no base that they join")
        if (found := identity(self._base)) != facts.base:
            raise AdapterError(f"{path} holds adapters of the base {facts.base}, and {self._base} is {found}")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        adapters = Adapters(self._base, safetensors.torch.load_file(path, device=device), facts.scale)
        return (named for file in weight_files(self._base) for named in adapters.joined(file))

    def shutdown(self) -> None:
        """Drop staged weights."""
        self._staged = None


class WeightDigests:
    """What vLLM adds to its worker: digests of its parameters, computed where they lie.

    vLLM's own `compute_weight_checksums` copies each of them to the host and hashes it there. On CPU both see only what
    vLLM has not repacked: its packed copies are no parameters.
    """

    model_runner: Any

    def weight_digests(self, turn: int, shares: int) -> dict[str, str]:
        """By name, of every `shares`-th layer, another one each `turn`; what is in no layer counts as one."""
        named = self.model_runner.get_model().named_parameters()
        parameters = {name: held for name, held in named if held.numel()}  # empty: packed on CPU
        layers = layerwise_groups(list(parameters))
        step = min(shares, len(layers))
        return {name: digest(parameters[name]) for layer in layers[turn % step :: step] for name in layer}


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 over one hash per row (of a vector, per item), which a device computes without a copy.

    A row's hash is the XOR of its items: it sees a flipped bit and another value, not that items of the row changed
    places. It protects from what goes wrong, not from who wants it to.
    """
    rows = tensor.detach().flatten(1) if tensor.dim() > 1 else tensor.detach().reshape(-1, 1)
    return hashlib.sha256(torch.hash_tensor(rows, dim=1).cpu().numpy().tobytes()).hexdigest()


def _forget_packed_experts(model: torch.nn.Module) -> None:
    """Have the reload build experts' kernels anew on CPU: kept ones would get plain weights where they read packed."""
    if not current_platform.is_cpu():
        return
    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None  # type: ignore[union-attr]


def _repack_tied_heads(model: torch.nn.Module) -> None:
    """Pack output heads again that share the embedding's weights.

    They are loaded through the embedding, so the reload skips them; on CPU their packed copy would stay the old one.
    """
    # imported here for the reason that `finish_weight_update` gives
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    layers = list(model.modules())
    embedded = {id(layer.weight) for layer in layers if type(layer) is VocabParallelEmbedding}
    for layer in layers:
        if isinstance(layer, ParallelLMHead) and id(layer.weight) in embedded:
            layer.quant_method.process_weights_after_loading(layer)


def register() -> None:
    """Entry point for vLLM: make our backends known, and let vLLM's own child processes die with their parent."""
    if FILE not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(FILE, FileTransfer)
        WeightTransferEngineFactory._registry[NCCL] = _nccl_receiver
    if multiprocessing.parent_process() is not None and os.environ.get("MILEPOST_ENGINE"):
        # An engine core outlives a killed owner otherwise, and holds its memory and port.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _nccl_receiver() -> type[WeightTransferEngine]:
    from milepost.actors.nccl.receiver import NcclReceiver  # loads NCCL's wrapper, which other ways do without

    return NcclReceiver
