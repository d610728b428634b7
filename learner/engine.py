"""The model under training, split over ranks by DeepSpeed ZeRO: forward, backward, step, gather, save.

The only file that imports deepspeed. One engine per process. Every method is collective: all ranks call it in the same
order with equally many micro-batches, or the exchange runs into its deadline (`collective_timeout_s`) and raises.
Saved shards are pickles, as DeepSpeed writes them: load only folders whose hashes were verified
(`milepost.learner.checkpoint`). Parallelism other than over data is not offered.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import deepspeed
import deepspeed.comm.comm
import deepspeed.ops
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.comm.torch import TorchBackend
from deepspeed.utils import safe_set_full_grad
from torch import Tensor

from milepost.learner.config import LearnerConfig
from milepost.learner.metrics import add
from milepost.learner.pack import MicroBatch
from milepost.learner.policy import batch_logprobs, layer_of, load_policy, write_policy
from milepost.learner.training import LossFn, StepMetrics

TAG: Final = "engine"
LAYOUT: Final = "layout.json"
LOWEST_RATE: Final = 0.1

# DeepSpeed's own calls: torch would say so at every step, and nobody here can change it
warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*_tensor` is deprecated", category=FutureWarning)


class EngineError(RuntimeError):
    """The model, the ranks or a saved state don't fit together; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A rank's place: who it is and where rank 0 listens."""

    rank: int
    world_size: int
    master_addr: str
    master_port: int


class DeepSpeedEngine:
    """A causal language model with its optimizer. Implements `milepost.learner.training.TrainingEngine`."""

    def __init__(
        self,
        model_path: Path,
        config: LearnerConfig,
        *,
        seat: Seat,
        seed: int,
        device: torch.device,
        with_reference: bool = False,
    ) -> None:
        """Join the other ranks and load the model.

        Args:
            model_path: folder in Hugging Face format, on this machine; nothing is downloaded.
            device: `cpu` (gloo) or `cuda:<index>` (nccl).
            with_reference: also keep a frozen whole copy of the model on every rank, for the KL term.

        Raises:
            FileNotFoundError: no model there.
            EngineError: a rank did not come in time, or the device isn't what DeepSpeed found.
        """
        self.rank = seat.rank
        self.world_size = seat.world_size
        self._config = config
        self._model_path = model_path
        self._device = device
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(seed)
        _check_device(device)
        module = load_policy(model_path)
        self._reference = load_policy(model_path).to(device).eval().requires_grad_(False) if with_reference else None
        _join(seat, device, timedelta(seconds=config.collective_timeout_s))
        if config.gradient_checkpointing:
            module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._engine, _, _, _ = deepspeed.initialize(
            model=module,
            model_parameters=module.parameters(),
            config=_deepspeed_config(config),
            lr_scheduler=partial(_schedule, warmup_steps=config.warmup_steps, decay_steps=config.decay_steps),
            dist_init_required=False,
        )
        self._engine.train()  # dropout is zero, so this differs from eval() by gradient checkpointing alone

    def update(
        self,
        micro_batches: Sequence[MicroBatch],
        loss_fn: LossFn,
        *,
        temperature: float,
        approve: Callable[[Mapping[str, float]], None],
    ) -> StepMetrics:
        """One optimizer step on the sum of the micro-batches' losses over all ranks.

        If the summed loss or the gradient's norm is not finite on any rank, no rank steps and the gradient is dropped.
        `approve` gets the summed numbers before the step; if it raises, the gradient is dropped and the error goes on.
        """
        lr = float(self._engine.get_lr()[0])
        sums: dict[str, float] = {}
        for k, micro_batch in enumerate(micro_batches):
            self._engine.set_gradient_accumulation_boundary(k == len(micro_batches) - 1)
            batch = micro_batch.to(self._device)
            logprobs, entropies = batch_logprobs(self._engine, batch, temperature)
            terms = loss_fn(k, batch, logprobs, entropies)
            # DeepSpeed averages gradients over ranks; the loss is already divided by the global denominator
            self._engine.backward(terms.loss * self.world_size, scale_wrt_gas=False)
            add(sums, terms.sums)
            add(sums, {"loss": float(terms.loss.detach())})
        sums = self.all_sum(sums)
        loss = sums.pop("loss")
        if not math.isfinite(loss):
            self._drop_gradient()
            return StepMetrics(applied=False, loss=loss, grad_norm=math.inf, lr=lr, sums=sums)
        try:
            approve(sums)
        except Exception:
            self._drop_gradient()
            raise
        grad_norm = self._apply()
        return StepMetrics(applied=math.isfinite(grad_norm), loss=loss, grad_norm=grad_norm, lr=lr, sums=sums)

    def token_logprobs(self, micro_batches: Sequence[MicroBatch], *, temperature: float) -> list[Tensor]:
        """Log-probs `[B, L]` of trained tokens under the current weights, on the device; 0 where nothing is trained."""
        return self._without_gradient(self._engine, micro_batches, temperature)

    def reference_logprobs(self, micro_batches: Sequence[MicroBatch], *, temperature: float) -> list[Tensor]:
        """The same under the frozen starting policy. Raises EngineError if the engine was made without one."""
        if self._reference is None:
            raise EngineError("this engine has no reference model; make it with with_reference=True for kl_coef > 0")
        return self._without_gradient(self._reference, micro_batches, temperature)

    def all_sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sum of every value over ranks; all ranks pass the same names."""
        names = sorted(values)
        total = torch.tensor([values[name] for name in names], dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(total)
        return dict(zip(names, total.tolist(), strict=True))

    def all_equal(self, value: int) -> bool:
        """Whether all ranks passed the same `value`, below 2**53."""
        both = torch.tensor([value, -value], dtype=torch.int64, device=self._device)
        torch.distributed.all_reduce(both, op=torch.distributed.ReduceOp.MAX)
        return bool(both[0] == -both[1])

    def tensor_shapes(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, dtype and whole shape of what `full_tensors` yields, in its order, without gathering anything."""
        # ZeRO-3 leaves an empty shard in the parameter and its real shape beside it
        shape = "ds_shape" if self._config.zero_stage == 3 else "shape"
        return [(n, p.dtype, tuple(getattr(p, shape))) for n, p in self._engine.module.named_parameters()]

    def full_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter, whole, by its name in the checkpoint; tied weights once.

        Under ZeRO-3 layers are gathered one at a time, so a tensor is valid only until the next is taken. All ranks
        iterate to the end together.
        """
        for _, layer in groupby(self._engine.module.named_parameters(), key=lambda named: layer_of(named[0])):
            parameters = dict(layer)
            with deepspeed.zero.GatheredParameters(list(parameters.values()), modifier_rank=None):
                for name, parameter in parameters.items():
                    yield name, parameter.detach()

    def save_policy(self, folder: Path) -> None:
        """Write the policy as a plain Hugging Face folder (safetensors and tokenizer), on rank 0."""
        weights = {}
        for name, tensor in self.full_tensors():
            if self.rank == 0:
                weights[name] = tensor.to("cpu", copy=True)
        if self.rank == 0:
            write_policy(self._engine.module, weights, source=self._model_path, folder=folder)

    def save(self, folder: Path) -> None:
        """Write weights, optimizer and schedule, one shard per rank. `folder` is the same for all ranks."""
        self._engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
        if self.rank == 0:
            (folder / LAYOUT).write_text(json.dumps(self._layout()))
        torch.distributed.barrier()

    def load(self, folder: Path) -> None:
        """Continue from `save`. Verify the folder first: it holds pickles, which are code.

        Raises:
            EngineError: not a saved engine, or saved with other ranks or another ZeRO stage.
        """
        if not (folder / LAYOUT).is_file():
            raise EngineError(f"no saved engine in {folder}: {LAYOUT} is missing")
        saved = json.loads((folder / LAYOUT).read_text())
        if saved != self._layout():
            raise EngineError(f"{folder} was saved with {saved}, this run has {self._layout()}; resume with the same")
        loaded, _ = self._engine.load_checkpoint(str(folder), tag=TAG)
        if loaded is None:
            raise EngineError(f"DeepSpeed found no checkpoint {TAG!r} in {folder}")

    @torch.no_grad()
    def _without_gradient(self, model: Any, micro_batches: Sequence[MicroBatch], temperature: float) -> list[Tensor]:
        return [batch_logprobs(model, batch.to(self._device), temperature)[0] for batch in micro_batches]

    def _apply(self) -> float:
        """Step and return the gradient's norm; if it is not finite, DeepSpeed steps on no rank and we return inf."""
        if self._config.zero_stage > 0:
            self._engine.step()
            return float(self._engine.get_global_grad_norm()) if self._engine.was_step_applied() else math.inf
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in self._engine.module.parameters()]))
        if not math.isfinite(norm):
            self._drop_gradient()
            return math.inf
        self._engine.step()
        return norm

    def _drop_gradient(self) -> None:
        """Forget the accumulated gradient. ZeRO holds it in shards, and clears them when it meets a NaN."""
        if self._config.zero_stage == 0:
            self._engine.zero_grad()
            return
        parameter = next(self._engine.module.parameters())
        shape = parameter.ds_shape if self._config.zero_stage == 3 else parameter.shape
        safe_set_full_grad(parameter, torch.full(shape, math.nan, device=self._device))
        self._engine.step()

    def _layout(self) -> dict[str, int]:
        return {"ranks": self.world_size, "zero_stage": self._config.zero_stage}


def _check_device(device: torch.device) -> None:
    if (found := get_accelerator().device_name()) != device.type:
        raise EngineError(
            f"device is {device}, DeepSpeed found {found}: start the process with DS_ACCELERATOR={device.type}"
        )


def _join(seat: Seat, device: torch.device, timeout: timedelta) -> None:
    """Connect the ranks, with the deadline also on the groups that ZeRO makes for itself.

    DeepSpeed creates those without a timeout, so a frozen peer would hold the others for torch's default of half an
    hour. Its shared-memory operator, compiled at first use and used by inference alone, is left out.
    """
    os.environ["LOCAL_RANK"] = str(device.index or 0)  # DeepSpeed reads its device from here
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "gloo" if device.type == "cpu" else "nccl"
    address = f"tcp://{seat.master_addr}:{seat.master_port}"
    try:
        comm = TorchBackend(backend, timeout, address, seat.rank, seat.world_size)
    except torch.distributed.DistError as error:
        raise EngineError(
            f"rank {seat.rank} of {seat.world_size} waited {timeout.total_seconds():.0f} s for the others "
            f"at {address}: {error}"
        ) from error
    comm.new_group = partial(torch.distributed.new_group, timeout=timeout)
    deepspeed.comm.comm.cdb = comm


def _deepspeed_config(config: LearnerConfig) -> dict[str, Any]:
    half = {"bf16": {"enabled": True, "check_grad_overflow": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return {
        # asked for, without effect: micro-batches vary in size and number
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": None,
        "gradient_clipping": config.grad_clip,
        "zero_optimization": {"stage": config.zero_stage},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": config.lr, "weight_decay": config.weight_decay, "torch_adam": True},
        },
        **(half if config.dtype == "bfloat16" else {}),
    }


def _schedule(
    optimizer: torch.optim.Optimizer, *, warmup_steps: int, decay_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The rate of `learning_rate_factor`, stepped once per optimizer step."""
    factor = partial(learning_rate_factor, warmup_steps=warmup_steps, decay_steps=decay_steps)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def learning_rate_factor(step: int, *, warmup_steps: int, decay_steps: int) -> float:
    """Linear rise over `warmup_steps` steps, the first of them not zero, then linear fall to a tenth, then constant."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    fallen = min(1.0, (step - warmup_steps) / decay_steps) if decay_steps else 0.0
    return 1.0 - (1.0 - LOWEST_RATE) * fallen
