"""The models of a learner rank under training: the policy, where wanted its critic, and a frozen starting policy.

Implements `milepost.learner.training.TrainingBackend` over `ZeroModel`. A critic with a trunk of its own is a second
model with its own optimizer; on a shared trunk it is a value head that rides in the policy's. Either way it stays
here: weights that go to inference engines and saved policies hold the policy alone, under its names in the checkpoint.
One object per process, every method collective.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milepost.learner.batch.pack import MicroBatch
from milepost.learner.config import LearnerConfig
from milepost.learner.lora import LoraConfig
from milepost.learner.loss.critic import CriticConfig
from milepost.learner.loss.loss import LossTerms
from milepost.learner.training import LossFn, ProcessGroupMember, StepMetrics, ValueFn
from milepost.learner.update_metrics import add
from milepost.learner.zero import lora
from milepost.learner.zero.construction import critic_model, policy_model, reference_model
from milepost.learner.zero.families import packing_for
from milepost.learner.zero.policy import load_config, write_policy
from milepost.learner.zero.token_policy import TokenPolicy, token_scores, token_values
from milepost.learner.zero.value import critic_values
from milepost.learner.zero.zero_model import ZeroError, ZeroModel, join

LAYOUT: Final = "layout.json"


@dataclass(frozen=True, slots=True)
class Models:
    """Which models a rank holds."""

    policy: Path
    """Folder in Hugging Face format, on this machine; nothing is downloaded."""
    reference: Path | None = None
    """Of the same format: the frozen starting policy, for the KL term."""
    critic: CriticConfig | None = None
    lora: LoraConfig = field(default_factory=LoraConfig)
    """With a rank, adapters alone are trained, and the policy without them is the reference."""
    base: str = ""
    """Of the policy's weights that adapters are trained on: tells another model's checkpoint apart."""


class ActorCritic:
    """The policy with its optimizer, and its critic."""

    def __init__(
        self, models: Models, config: LearnerConfig, *, member: ProcessGroupMember, seed: int, device: torch.device
    ) -> None:
        """Join the other ranks and load the models.

        Args:
            device: `cpu` (gloo) or `cuda:<index>` (nccl).

        Raises:
            FileNotFoundError: no model there.
            ZeroError: a rank did not come in time, or the device isn't what DeepSpeed found.
            LoraError: the policy has no such layers for adapters.
        """
        self.rank = member.rank
        self.world_size = member.world_size
        self._zero_stage = config.zero_stage
        self._folder = models.policy
        self._lora, self._base = models.lora, models.base
        self._device = device
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(seed)
        self._trunk = "none" if models.critic is None else models.critic.trunk
        self.packing = packing_for(load_config(models.policy), config.packing, device)
        join(member, device, timedelta(seconds=config.collective_timeout_s))
        made = (config, self.packing)
        self._policy = policy_model(models.policy, *made, valued=self._trunk == "shared", adapters=self._lora)
        self._critic = None
        if models.critic is not None and self._trunk == "own":
            self._critic = critic_model(models.policy, *made, models.critic)
        self._reference = None if models.reference is None else reference_model(models.reference, *made, device)

    def update(
        self,
        micro_batches: Sequence[MicroBatch],
        loss_fn: LossFn,
        *,
        temperature: float,
        approve: Callable[[Mapping[str, float]], None],
        value_fn: ValueFn | None = None,
        entropy_gradient: bool = False,
    ) -> StepMetrics:
        """One optimizer step of the policy on the sum of the micro-batches' losses over all ranks.

        On a shared trunk what `value_fn` says of the estimates is added to the loss. `entropy_gradient`: the loss
        reads entropies, so they carry a gradient, which costs memory. If the summed loss or the
        gradient's norm is not finite on any rank, no rank steps and the gradient is dropped. `approve` gets the summed
        numbers before the step; if it raises, the gradient is dropped and the error goes on.
        """

        def terms_of(k: int, batch: MicroBatch) -> LossTerms:
            logprobs, entropies, values = token_scores(
                self._policy, batch, temperature, entropy_gradient=entropy_gradient
            )
            terms = loss_fn(k, batch, logprobs, entropies)
            if value_fn is None or values is None:
                return terms
            valued = value_fn(k, batch, values)
            return LossTerms(terms.loss + valued.loss, terms.sums | valued.sums)

        return self._step(self._policy, micro_batches, terms_of, approve)

    def scale_rate(self, factor: float) -> None:
        """Make the policy's next step at `factor` of the scheduled learning rate."""
        self._policy.scale_rate(factor)

    def update_critic(self, micro_batches: Sequence[MicroBatch], value_fn: ValueFn) -> StepMetrics:
        """One optimizer step of a critic with a trunk of its own; not finite is treated as in `update`."""
        critic = self._own_critic()

        def terms_of(k: int, batch: MicroBatch) -> LossTerms:
            return value_fn(k, batch, critic_values(critic, batch))

        return self._step(critic, micro_batches, terms_of, lambda _: None)

    @torch.no_grad()
    def token_logprobs(self, micro_batches: Sequence[MicroBatch], *, temperature: float) -> list[Tensor]:
        """Log-probs `[B, L]` of trained tokens under the current weights, on the device; 0 where nothing is trained."""
        return [token_scores(self._policy, batch.to(self._device), temperature)[0] for batch in micro_batches]

    @torch.no_grad()
    def token_statistics(
        self, micro_batches: Sequence[MicroBatch], *, temperature: float
    ) -> list[tuple[Tensor, Tensor]]:
        """The same with the entropies."""
        return [token_scores(self._policy, batch.to(self._device), temperature)[:2] for batch in micro_batches]

    @torch.no_grad()
    def reference_logprobs(self, micro_batches: Sequence[MicroBatch], *, temperature: float) -> list[Tensor]:
        """Log-probs under the frozen starting policy. Raises ZeroError if there is none."""
        if self._lora.rank:
            with lora.switched_off(self._policy.module):
                return self.token_logprobs(micro_batches, temperature=temperature)
        if self._reference is None:
            raise ZeroError("this rank has no reference model; kl_coef > 0 needs one")
        with self._reference.while_asked() as reference:
            return [token_scores(reference, batch.to(self._device), temperature)[0] for batch in micro_batches]

    @torch.no_grad()
    def token_values(self, micro_batches: Sequence[MicroBatch]) -> list[Tensor]:
        """The critic's estimates `[B, L]` before each trained token. Raises ZeroError if there is no critic."""
        batches = (batch.to(self._device) for batch in micro_batches)
        if self._trunk == "shared":
            return [token_values(self._policy, batch) for batch in batches]
        critic = self._own_critic()
        return [critic_values(critic, batch) for batch in batches]

    def all_sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sum of every value over ranks; all ranks pass the same names."""
        names = sorted(values)
        total = self.all_sum_array(np.array([values[name] for name in names], dtype=np.float64))
        return dict(zip(names, total.tolist(), strict=True))

    def all_sum_array(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum over ranks, item by item; all ranks pass the same shape."""
        total = torch.tensor(values, dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(total)
        return np.asarray(total.cpu().numpy(), dtype=np.float64)

    def all_equal(self, value: int) -> bool:
        """Whether all ranks passed the same `value`, below 2**53."""
        both = torch.tensor([value, -value], dtype=torch.int64, device=self._device)
        torch.distributed.all_reduce(both, op=torch.distributed.ReduceOp.MAX)
        return bool(both[0] == -both[1])

    def tensor_shapes(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, dtype and whole shape of what `full_tensors` yields, in its order, without gathering anything."""
        named = ((_policy_name(name), dtype, shape) for name, dtype, shape in self._policy.tensor_shapes())
        return [(name, dtype, shape) for name, dtype, shape in named if name is not None]

    def full_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every trained parameter of the policy, whole, by its name in the checkpoint; tied weights once.

        A tensor is valid only until the next is taken. All ranks iterate to the end together.
        """
        for name, tensor in self._policy.full_tensors():
            if (own := _policy_name(name)) is not None:
                yield own, tensor

    def save_policy(self, folder: Path) -> None:
        """Write the policy as a plain Hugging Face folder, or its adapters as peft's, on rank 0."""
        weights = {}
        for name, tensor in self.full_tensors():
            if self.rank == 0:
                weights[name] = tensor.to("cpu", copy=True)
        if self.rank == 0 and self._lora.rank:
            lora.write_adapters(weights, self._lora, base=self._folder, folder=folder)
        elif self.rank == 0:
            write_policy(self._policy.module.policy, weights, source=self._folder, folder=folder)

    def save(self, folder: Path) -> None:
        """Write weights, optimizers and schedules, one shard per rank and model. `folder` is the same for all ranks."""
        self._policy.save(folder)
        if self._critic is not None:
            self._critic.save(folder)
        if self.rank == 0:
            (folder / LAYOUT).write_text(json.dumps(self._layout()))
        torch.distributed.barrier()

    def load(self, folder: Path) -> None:
        """Continue from `save`. Verify the folder first: it holds pickles, which are code.

        Raises:
            ZeroError: no saved state, or saved with other ranks, another ZeRO stage, another critic or other adapters.
            LoraError: its adapters were trained on another policy.
        """
        if not (folder / LAYOUT).is_file():
            raise ZeroError(f"no saved models in {folder}: {LAYOUT} is missing")
        saved = json.loads((folder / LAYOUT).read_text())
        lora.require_base(saved, self._base, folder=folder)
        if saved != self._layout():
            raise ZeroError(f"{folder} was saved with {saved}, this run has {self._layout()}; resume with the same")
        self._policy.load(folder)
        if self._critic is not None:
            self._critic.load(folder)

    def _step(
        self,
        model: ZeroModel,
        micro_batches: Sequence[MicroBatch],
        terms_of: Callable[[int, MicroBatch], LossTerms],
        approve: Callable[[Mapping[str, float]], None],
    ) -> StepMetrics:
        lr = model.lr
        sums: dict[str, float] = {}
        for k, micro_batch in enumerate(micro_batches):
            terms = terms_of(k, micro_batch.to(self._device))
            model.backward(terms.loss, last=k == len(micro_batches) - 1)
            add(sums, terms.sums)
            add(sums, {"loss": float(terms.loss.detach())})
        sums = self.all_sum(sums)
        loss = sums.pop("loss")
        if not math.isfinite(loss):
            model.drop_gradient()
            return StepMetrics(applied=False, loss=loss, grad_norm=math.inf, lr=lr, sums=sums)
        try:
            approve(sums)
        except Exception:
            model.drop_gradient()
            raise
        grad_norm = model.step()
        return StepMetrics(applied=math.isfinite(grad_norm), loss=loss, grad_norm=grad_norm, lr=lr, sums=sums)

    def _own_critic(self) -> Any:
        if self._critic is None:
            raise ZeroError("this rank has no critic with a trunk of its own; make it with a critic")
        return self._critic

    def _layout(self) -> dict[str, Any]:
        layout: dict[str, Any] = {"ranks": self.world_size, "zero_stage": self._zero_stage}
        adapters = lora.layout_of(self._lora, self._base)
        return layout | {"critic": self._trunk, "prefix": TokenPolicy.PREFIX} | adapters


def _policy_name(name: str) -> str | None:
    """The name in the policy's checkpoint; None for what belongs to a critic."""
    return lora.saved_name(name.removeprefix(TokenPolicy.PREFIX)) if name.startswith(TokenPolicy.PREFIX) else None
