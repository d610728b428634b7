"""What runs in the process of one learner rank: the models under ZeRO, and the calls that its pool makes on all ranks.

Every call is collective: the pool makes it on each rank, in one order. `milepost.cluster.pools.learners` starts and
ends the processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import safetensors.torch
import torch
from torch.distributed import Store  # type: ignore[attr-defined]

from milepost.actors.engine import Transfer
from milepost.actors.lora.adapters import AdapterFacts, Adapters, identity
from milepost.actors.lora.saved_policy import write_merged
from milepost.actors.nccl.waiting import Sent
from milepost.cluster.base.files import file_sha256
from milepost.cluster.base.restarts import RestartConfig
from milepost.cluster.pools.stored_weights import StoredWeights, put
from milepost.cluster.pools.weights import Asked, answered
from milepost.cluster.replay.wire import EncodedGroup, decode_group
from milepost.learner.loop import LearnerRank, UpdateReport
from milepost.learner.lora import LoraConfig
from milepost.learner.recipe import Recipe, UpdateOptions
from milepost.learner.training import ProcessGroupMember
from milepost.learner.zero.lora import ADAPTER_FILE
from milepost.learner.zero.policy import TOKENIZER_FILES
from milepost.learner.zero.rendezvous import connect_store, open_store

if TYPE_CHECKING:
    from milepost.actors.nccl.sender import NcclSender


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSpec:
    """What every learner rank of a run is started with."""

    run_id: str
    model: Path
    """What is trained, or with adapters the policy that they are trained on."""
    reference: Path | None
    lora: LoraConfig
    recipe: Recipe
    seed: int
    checkpoints: Path
    keep_checkpoints: int
    config_hash: str
    transfer: Transfer
    workers_per_engine: int
    restarts: RestartConfig
    shares_gpu: bool = False
    """Whether an engine lies on a rank's GPU, which is asleep while the rank computes."""


class LearnerActor:
    """One rank in a process of its own."""

    def __init__(self, spec: LearnerSpec, rank: int) -> None:
        self._spec = spec
        self._number = rank
        self._timeout = timedelta(seconds=spec.recipe.learner.collective_timeout_s)
        self._store: Store | None = None
        self._facts: AdapterFacts | None = None
        """Of what it trains, where that is adapters."""
        self._sender: NcclSender | None = None

    def listen(self) -> tuple[str, int]:
        """Of rank 0 only: open the place where the ranks meet, and say where it is."""
        address = ray.util.get_node_ip_address()
        store = open_store(address, self._timeout)
        self._store = store
        return address, store.port

    def join(self, meeting: tuple[str, int]) -> None:
        """Meet the other ranks at what rank 0's `listen` returned, and load the models."""
        from milepost.learner.zero.actor_critic import (  # DeepSpeed: only a rank's own process needs it
            ActorCritic,
            Models,
        )

        spec, recipe = self._spec, self._spec.recipe
        store = self._store or connect_store(*meeting, self._timeout)
        member = ProcessGroupMember(rank=self._number, world_size=recipe.learner.ranks, store=store)
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        if spec.lora.rank:
            self._facts = AdapterFacts(spec.lora.rank, spec.lora.scale, identity(spec.model))
        models = Models(
            spec.model,
            reference=spec.reference,
            critic=recipe.trained_critic,
            lora=spec.lora,
            base=self._facts.base if self._facts else "",
        )
        self._models = ActorCritic(models, recipe.learner, member=member, seed=spec.seed, device=device)
        self._rank = LearnerRank(self._models, recipe)

    def load(self, folder: Path | None) -> None:
        """Continue from a verified checkpoint's `zero` folder, if any."""
        if folder is not None:
            self._models.load(folder / "zero")
        self._make_room()

    def train(self, groups: Sequence[EncodedGroup], version: int, options: UpdateOptions, asked: Asked) -> UpdateReport:
        """As `LearnerRank.train`, for encoded groups and with what engines were asked as its probe."""
        decoded = [decode_group(encoded) for encoded in groups]
        return self._rank.train(decoded, version, options, probe=lambda: answered(asked))

    def mutual_information(self, groups: Sequence[EncodedGroup]) -> float | None:
        """As `LearnerRank.mutual_information`, for encoded groups."""
        return self._rank.mutual_information([decode_group(encoded) for encoded in groups])

    def check_parity(self, asked: Asked, version: int) -> None:
        """As `LearnerRank.check_parity`, for what engines were asked."""
        self._rank.check_parity(answered(asked), version)

    def write_weights(self, path: Path) -> str | None:
        """Rank 0 writes every trained tensor to `path` and returns the file's SHA-256; the other ranks take part in
        gathering.
        """
        if (tensors := self._gathered()) is None:
            return None
        safetensors.torch.save_file(tensors, path, metadata=self._metadata())
        return file_sha256(path)

    def store_weights(self, folder: str) -> StoredWeights | None:
        """Rank 0 puts every trained tensor into Ray's object store; the other ranks take part in gathering.

        `folder`: name of the one that engines keep them in.
        """
        if (tensors := self._gathered()) is None:
            return None
        return put(safetensors.torch.save(tensors, metadata=self._metadata()), folder=folder)

    def _metadata(self) -> dict[str, str] | None:
        """Of a file of what is trained."""
        return None if self._facts is None else self._facts.metadata()

    def _gathered(self) -> dict[str, torch.Tensor] | None:
        """Every trained tensor on the CPU, on rank 0."""
        tensors = {}
        for name, tensor in self._models.full_tensors():
            if self._models.rank == 0:
                tensors[name] = tensor.to("cpu", copy=True).contiguous()
        self._make_room()
        return tensors if self._models.rank == 0 else None

    def _make_room(self) -> None:
        """Give back what PyTorch keeps of freed memory: an engine wakes up, or starts, in it."""
        if self._spec.shares_gpu:
            torch.cuda.empty_cache()

    def broadcast(self, engines: Sequence[Any], timeout_s: float) -> Sent | None:
        """Rank 0 sends every tensor to the engines over NCCL and says how that ended; the other ranks take part in
        gathering.
        """
        if self._models.rank != 0:
            for _ in self._models.full_tensors():
                pass
            return None
        from milepost.actors.nccl.sender import GatheredSource, NcclSender  # vllm: only this way needs it in a learner

        if self._sender is None:
            source = GatheredSource(self._models.tensor_shapes(), self._models.full_tensors)
            self._sender = NcclSender(
                source, host=ray.util.get_node_ip_address(), workers_per_engine=self._spec.workers_per_engine
            )
        return self._sender.send(engines, timeout_s)

    def save(self, folder: Path) -> None:
        """Write this rank's part of a checkpoint into `folder`."""
        self._models.save(folder / "zero")
        policy = folder / "policy"
        if self._facts is None:
            self._models.save_policy(policy)
            return
        self._models.save_policy(policy / "adapter")
        if self._models.rank == 0:
            written = safetensors.torch.load_file(policy / "adapter" / ADAPTER_FILE)
            adapters = Adapters(self._spec.model, written, self._facts.scale)
            dtype = getattr(torch, self._spec.recipe.learner.dtype)
            write_merged(self._spec.model, adapters, dtype=dtype, copied=TOKENIZER_FILES, folder=policy)
