"""A module and its optimizer, split over ranks by DeepSpeed ZeRO: forward, backward, step, gather, save.

The only file that imports deepspeed. A process joins the others once and may then hold several models, each with a
ZeRO of its own. Every method is collective: all ranks call it in the same order with equally many micro-batches, or the
exchange runs into its deadline (`collective_timeout_s`) and raises. Saved shards are pickles, as DeepSpeed writes them:
load only folders whose hashes were verified (`milepost.learner.zero.checkpoint`). Parallelism other than over data
is not offered.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from deepspeed.runtime.zero.partition_parameters import DeepSpeedTensorOverride
from deepspeed.utils import safe_set_full_grad
from torch import Tensor
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from milepost.learner.config import LearnerConfig
from milepost.learner.training import ProcessGroupMember
from milepost.learner.zero.policy import layer_of

LOWEST_RATE: Final = 0.1

# DeepSpeed's own calls: torch would say so at every step, and nobody here can change it
warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*_tensor` is deprecated", category=FutureWarning)


class ZeroError(RuntimeError):
    """The models, the ranks or a saved state don't fit together; the message says which and what to do."""


class ZeroModel:
    """One module under training with AdamW. Calling it runs the module; `join` comes first."""

    def __init__(self, module: torch.nn.Module, config: LearnerConfig, *, lr: float, name: str) -> None:
        """Split `module` over the ranks.

        Args:
            lr: highest learning rate; warm-up and decay are those of `config`.
            name: of its folder in a checkpoint.
        """
        self._zero_stage = config.zero_stage
        self._name = name
        self._is_whole = all(parameter.requires_grad for parameter in module.parameters())
        self._deepspeed, _, _, _ = deepspeed.initialize(
            model=module,
            model_parameters=[parameter for parameter in module.parameters() if parameter.requires_grad],
            config=_deepspeed_config(config, lr),
            lr_scheduler=partial(_schedule, warmup_steps=config.warmup_steps, decay_steps=config.decay_steps),
            dist_init_required=False,
        )
        self._deepspeed.train()  # dropout is zero, so this differs from eval() by gradient checkpointing alone

    def __call__(self, **inputs: Any) -> Any:
        """What the module answers."""
        return self._deepspeed(**inputs)

    @property
    def module(self) -> Any:
        """The module itself; under ZeRO-3 its parameters are empty outside of a pass or a gathering."""
        return self._deepspeed.module

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return float(self._deepspeed.get_lr()[0])

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of `loss`, which is summed over ranks; `last`: no other comes before `step`."""
        self._deepspeed.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages gradients over ranks; the loss is already divided by the global denominator
        self._deepspeed.backward(loss * torch.distributed.get_world_size(), scale_wrt_gas=False)

    def scale_rate(self, factor: float) -> None:
        """Make the next step at `factor` of the scheduled learning rate."""
        for group, scheduled in zip(
            self._deepspeed.optimizer.param_groups, self._deepspeed.lr_scheduler.get_last_lr(), strict=True
        ):
            group["lr"] = factor * scheduled

    def step(self) -> float:
        """Step and return the gradient's norm; if it is not finite, no rank steps and this is inf."""
        if self._zero_stage > 0:
            self._deepspeed.step()
            return float(self._deepspeed.get_global_grad_norm()) if self._deepspeed.was_step_applied() else math.inf
        gradients = [p.grad for p in self._deepspeed.module.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            self.drop_gradient()
            return math.inf
        self._deepspeed.step()
        return norm

    def drop_gradient(self) -> None:
        """Forget the accumulated gradient. ZeRO holds it in shards, and clears them when it meets a NaN."""
        if self._zero_stage == 0:
            self._deepspeed.zero_grad()
            return
        if noted := getattr(self._deepspeed.optimizer, "norm_for_param_grads", None):
            # an optimizer on the host judges the norms that the backward pass noted
            noted.update(dict.fromkeys(noted, torch.tensor(math.nan)))
        else:
            _, parameter = self._trained()[0]
            shape: Any = parameter.ds_shape if self._zero_stage == 3 else parameter.shape
            safe_set_full_grad(parameter, torch.full(shape, math.nan, device=self._deepspeed.device))
        self._deepspeed.step()

    def tensor_shapes(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, dtype and whole shape of what `full_tensors` yields, in its order, without gathering anything."""
        # ZeRO-3 leaves an empty shard in the parameter and its real shape beside it
        shape = "ds_shape" if self._zero_stage == 3 else "shape"
        return [(n, p.dtype, tuple(getattr(p, shape))) for n, p in self._trained()]

    def full_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every trained parameter, whole, by its name in the module; tied weights once.

        Under ZeRO-3 layers are gathered one at a time, so a tensor is valid only until the next is taken. All ranks
        iterate to the end together.
        """
        for _, layer in groupby(self._trained(), key=lambda named: layer_of(named[0])):
            parameters = dict(layer)
            with deepspeed.zero.GatheredParameters(list(parameters.values()), modifier_rank=None):
                for name, parameter in parameters.items():
                    yield name, parameter.detach()

    def save(self, folder: Path) -> None:
        """Write trained weights, optimizer and schedule, one shard per rank. `folder` is the same for all ranks."""
        self._deepspeed.save_checkpoint(
            str(folder), tag=self._name, save_latest=False, exclude_frozen_parameters=not self._is_whole
        )

    def load(self, folder: Path) -> None:
        """Continue from `save`. Verify the folder first: it holds pickles, which are code.

        Raises:
            ZeroError: nothing of this name was saved there.
        """
        loaded, _ = self._deepspeed.load_checkpoint(str(folder), tag=self._name, load_module_strict=self._is_whole)
        if loaded is None:
            raise ZeroError(f"DeepSpeed found no checkpoint {self._name!r} in {folder}")

    def _trained(self) -> list[tuple[str, Any]]:
        """Parameters that are not frozen, by name."""
        return [named for named in self._deepspeed.module.named_parameters() if named[1].requires_grad]


class FrozenModel:
    """One module that is never trained. `join` comes first.

    With ZeRO 3 it lies split over the ranks. Below it lies on the host, and on the device only `while_asked`.
    """

    def __init__(self, module: torch.nn.Module, config: LearnerConfig, device: torch.device) -> None:
        self._module: Any = module.eval().requires_grad_(False)
        self._device = device
        self._is_split = config.zero_stage == 3
        if self._is_split:
            settings = _deepspeed_config(config, config.lr)
            del settings["optimizer"]
            self._module, *_ = deepspeed.initialize(model=module, config=settings, dist_init_required=False)

    @contextmanager
    def while_asked(self) -> Iterator[Any]:
        """What runs the module, on the device."""
        yield self._module if self._is_split else self._module.to(self._device)
        if not self._is_split:
            self._module.to("cpu")


@contextmanager
def split_as_made(config: LearnerConfig) -> Iterator[None]:
    """With ZeRO 3 a model that transformers loads in here is split over the ranks parameter by parameter."""
    if config.zero_stage < 3:
        yield
        return
    settings = HfDeepSpeedConfig(_deepspeed_config(config, config.lr))  # transformers refers to it weakly
    theirs = deepspeed.zero.Init
    # By default it makes every new tensor bfloat16, rotary tables too: a position times a rounded frequency is noise
    deepspeed.zero.Init = partial(theirs, tensor_overrides=[DeepSpeedTensorOverride.device])
    try:
        yield
    finally:
        deepspeed.zero.Init = theirs
        unset_hf_deepspeed_config()
        del settings


def join(member: ProcessGroupMember, device: torch.device, timeout: timedelta) -> None:
    """Connect the ranks, with the deadline also on the groups that ZeRO makes for itself.

    DeepSpeed creates those without a timeout, so a frozen peer would hold the others for torch's default of half an
    hour. Its shared-memory operator, compiled at first use and used by inference alone, is left out.

    Args:
        device: `cpu` (gloo) or `cuda:<index>` (nccl).

    Raises:
        ZeroError: a rank did not come in time, or the device isn't what DeepSpeed found.
    """
    if (found := get_accelerator().device_name()) != device.type:
        raise ZeroError(
            f"device is {device}, DeepSpeed found {found}: start the process with DS_ACCELERATOR={device.type}"
        )
    os.environ["LOCAL_RANK"] = str(device.index or 0)  # DeepSpeed reads its device from here
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "gloo" if device.type == "cpu" else "nccl"
    rank, size = member.rank, member.world_size
    try:
        torch.distributed.init_process_group(backend, store=member.store, rank=rank, world_size=size, timeout=timeout)
    except torch.distributed.DistError as error:
        raise ZeroError(
            f"rank {rank} of {size} did not meet the others within {timeout.total_seconds():.0f} s: {error}"
        ) from error
    comm = TorchBackend(backend, timeout, None, rank, size)  # takes the group that is there
    comm.new_group = partial(torch.distributed.new_group, timeout=timeout)
    deepspeed.comm.comm.cdb = comm


def _deepspeed_config(config: LearnerConfig, lr: float) -> dict[str, Any]:
    return _merged(_own_settings(config, lr), config.deepspeed)


def _merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with those of `more`, table by table."""
    both = {
        key: _merged(values[key], more[key]) for key in values.keys() & more.keys() if isinstance(values[key], dict)
    }
    return {**values, **more, **both}


def _own_settings(config: LearnerConfig, lr: float) -> dict[str, Any]:
    half = {"bf16": {"enabled": True, "check_grad_overflow": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return {
        # asked for, without effect: micro-batches vary in size and number
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": None,
        "gradient_clipping": config.grad_clip,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_force_ds_cpu_optimizer": False,  # one on the host is PyTorch's, too
        # PyTorch's own: one pass over memory, on GPU and CPU alike, and nothing is compiled at first use
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": lr, "weight_decay": config.weight_decay, "torch_adam": True, "fused": True},
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
