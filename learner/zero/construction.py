"""The models of a rank, made from folders in the data type that they are trained in.

With ZeRO 3 each parameter is split over the ranks as soon as it is made and then filled module by module by rank 0, so
no rank holds a whole model, on its device or in memory of its own; files are mapped, not read. Below, every rank reads
all of it. Collective with ZeRO 3: all ranks make the same models in the same order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch

from milepost.learner.batch.pack import Packing
from milepost.learner.config import LearnerConfig
from milepost.learner.lora import LoraConfig
from milepost.learner.loss.critic import CriticConfig
from milepost.learner.zero.lora import add_adapters
from milepost.learner.zero.policy import load_policy
from milepost.learner.zero.token_policy import TokenPolicy
from milepost.learner.zero.value import Critic
from milepost.learner.zero.zero_model import FrozenModel, ZeroModel, split_as_made

_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def policy_model(
    folder: Path, config: LearnerConfig, packing: Packing, *, valued: bool, adapters: LoraConfig
) -> ZeroModel:
    """The policy with its optimizer, a value head if it is `valued`, and adapters if their rank is above 0.

    Raises FileNotFoundError, and LoraError where it has no such layers for adapters.
    """
    with split_as_made(config):
        policy = load_policy(folder, packing, _DTYPES[config.dtype])
    if adapters.rank:
        add_adapters(policy, adapters)
    _checkpoint_gradients(policy, config)
    return ZeroModel(TokenPolicy(policy, valued=valued), config, lr=config.lr, name="policy")


def critic_model(folder: Path, config: LearnerConfig, packing: Packing, critic: CriticConfig) -> ZeroModel:
    """A critic with a trunk of its own, which starts as the policy's, and its optimizer. Raises FileNotFoundError."""
    with split_as_made(config):
        module = Critic(load_policy(folder, packing, _DTYPES[config.dtype]))
    _checkpoint_gradients(module.trunk, config)
    keys = ("warmup_steps", "decay_steps")  # of the policy's schedule, over as many updates
    paced = {key: getattr(config, key) * critic.steps // config.minibatches for key in keys}
    return ZeroModel(module, config.model_copy(update=paced), lr=critic.lr, name="critic")


def reference_model(folder: Path, config: LearnerConfig, packing: Packing, device: torch.device) -> FrozenModel:
    """The frozen starting policy. Raises FileNotFoundError."""
    with split_as_made(config):
        policy = load_policy(folder, packing, _DTYPES[config.dtype])
    return FrozenModel(TokenPolicy(policy), config, device)


def _checkpoint_gradients(model: Any, config: LearnerConfig) -> None:
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
