"""vLLM's transfer over NCCL without a GPU: its own trainer, workers, control calls and rendezvous over TCP.

What is stood in for is the communicator, by one over the rendezvous' own store, and CUDA's streams, by none.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError
from vllm.config import ParallelConfig
from vllm.distributed.device_communicators import pynccl
from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer import nccl_common, packed_tensor
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.model_loader.reload import record_metadata_for_reloading
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.worker import gpu_worker

from milepost.actors.nccl.receiver import NcclReceiver
from milepost.actors.nccl.sender import GatheredSource
from milepost.cluster.pools.engine_process import EngineActor

Tensors = dict[str, torch.Tensor]


class CpuCommunicator:
    """`PyNcclCommunicator` over the store that the ranks met at: a broadcast ends once every rank has it."""

    formed: list[CpuCommunicator]

    def __init__(self, group: StatelessProcessGroup, device: int) -> None:  # noqa: ARG002
        self.group: StatelessProcessGroup | None = group
        self.rank, self.world_size, self.disabled = group.rank, group.world_size, False
        self._sent = 0
        group.all_gather_obj(group.rank)  # as NCCL's own handshake
        self.formed.append(self)

    def broadcast(self, tensor: torch.Tensor, src: int, stream: object = None) -> None:  # noqa: ARG002
        if self.disabled or self.group is None:
            return
        group, number = self.group, self._sent
        self._sent += 1
        if self.rank != src:
            tensor.copy_(group.broadcast(torch.empty(0), src))
            group.store.set(f"had {number} {self.rank}", b"1")
            return
        group.broadcast(tensor, src)
        missing = [f"had {number} {rank}" for rank in range(self.world_size) if rank != src]
        while not self.disabled and not group.store.check(missing):
            threading.Event().wait(0.01)

    def destroy(self) -> None:
        self.disabled, self.group = True, None  # the store ends with its last user


class Doubled(QuantizeMethodBase):
    """A layer that keeps other values than it loads, as quantized and repacked ones do: twice each."""

    create_weights = apply = lambda *_: None  # type: ignore[assignment]

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        for parameter in layer.parameters():
            parameter.data.mul_(2)


class Net(torch.nn.Module):
    """A model of two layers that vLLM's reload treats as one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.loads = 0
        self.first, self.second = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
        self.first.quant_method = self.second.quant_method = Doubled()  # type: ignore[assignment]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.loads += 1
        for name, weight in weights:
            parameter = self.get_parameter(name)
            getattr(parameter, "weight_loader", lambda own, new: own.data.copy_(new))(parameter, weight)


class Worker(gpu_worker.Worker):
    """vLLM's worker as far as it updates weights."""

    def __init__(self, rank: int, size: int) -> None:
        parallel = ParallelConfig(tensor_parallel_size=size)
        parallel.rank = rank
        self.rank, self.vllm_config = rank, SimpleNamespace(parallel_config=parallel, model_config=None)
        self.net = Net()
        record_metadata_for_reloading(self.net)
        self.weight_transfer_engine = NcclReceiver(None, self.vllm_config, torch.device("cpu"), self.net)
        self._weight_update_active = self._weight_update_is_draft = False
        self.model_runner = SimpleNamespace(reset_lora_state=lambda: None)


class Llm(AsyncLLM):
    """vLLM's control calls on the workers of one engine, each with a thread of its own that takes them in order."""

    def __init__(self, size: int) -> None:
        """`before` is told of each call; what it raises is what comes of that."""
        self.workers = [Worker(rank, size) for rank in range(size)]
        self._threads = [ThreadPoolExecutor(1) for _ in self.workers]
        self.before: Callable[[str], None] = lambda _: None

    def __del__(self) -> None:
        """There is no core to end."""

    async def collective_rpc(self, method: str, *_: object, kwargs: dict[str, Any] | None = None) -> list[Any]:  # type: ignore[override]
        self.before(method)
        loop = asyncio.get_running_loop()
        calls = [
            loop.run_in_executor(thread, lambda worker=worker: getattr(worker, method)(**(kwargs or {})))
            for worker, thread in zip(self.workers, self._threads, strict=True)
        ]
        return await asyncio.gather(*calls)


class Handle:
    """A Ray handle of an `EngineActor`: calls run on threads, and fail once it is lost."""

    def __init__(self, size: int) -> None:
        self.llm = Llm(size)
        self._actor = EngineActor.__new__(EngineActor)
        self._actor._engine = SimpleNamespace(llm=self.llm)  # type: ignore[assignment]
        self._lost: Future[None] = Future()

    def lose(self) -> None:
        """End it: what waits for it learns of that, and its workers do nothing more."""
        for worker in self.llm.workers:
            worker.weight_transfer_engine.receive_weights = lambda _: threading.Event().wait(60)
        self._lost.set_exception(RayActorError())

    @property
    def nets(self) -> list[Tensors]:
        return [dict(worker.net.state_dict()) for worker in self.llm.workers]

    def __getattr__(self, name: str) -> SimpleNamespace:
        if name.startswith("_"):
            raise AttributeError(name)

        def remote(*arguments: object) -> SimpleNamespace:
            answer: Future[object] = Future()

            def fail(_: Future[None]) -> None:
                if not answer.done():
                    answer.set_exception(RayActorError())

            def call() -> None:
                try:
                    result = asyncio.run(getattr(self._actor, name)(*arguments))
                    if not answer.done():
                        answer.set_result(result)
                except Exception as error:
                    if not answer.done():
                        answer.set_exception(error)

            self._lost.add_done_callback(fail)
            if not self._lost.done():
                threading.Thread(target=call, daemon=True).start()
            return SimpleNamespace(future=lambda: answer)

        return SimpleNamespace(remote=remote)


def without_gpu(patch: pytest.MonkeyPatch) -> list[CpuCommunicator]:
    """Put the stand-ins in place; the communicators that form are added to what is returned."""
    CpuCommunicator.formed = []
    patch.setattr(pynccl, "PyNcclCommunicator", CpuCommunicator)
    patch.setattr(packed_tensor, "_get_streams", lambda _, n: [SimpleNamespace(synchronize=lambda: None)] * n)
    patch.setattr(torch.cuda, "stream", lambda _: torch.no_grad())
    patch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    patch.setattr(torch.accelerator, "synchronize", lambda: None)
    patch.setattr(gpu_worker, "set_current_vllm_config", lambda _: torch.no_grad())
    patch.setattr(nccl_common.torch.accelerator, "is_available", lambda: False)
    return CpuCommunicator.formed


def source_of(net: Net, taken: list[str]) -> GatheredSource:
    """The tensors of `net` as the learner sends them; the names of those gathered are added to `taken`."""

    def gather() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in net.state_dict().items():
            taken.append(name)
            yield name, tensor

    meta = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in net.state_dict().items()]
    return GatheredSource(meta, gather)
