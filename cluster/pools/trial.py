"""A trial of new weights before the first iteration: do the engines serve what the learner means by them?

An engine may start right from a model and yet take an update of it wrongly: where it keeps packed copies, ties tensors,
or names them otherwise. So perturbed weights are published on the way that all updates take, the engines answer a few
prompts, and their log-probs are compared with those of the same model computed here; then the true weights are put
back. Where they differ, kinds of tensors are tried one by one, so that the error names those that do not arrive.

Not over NCCL: what that sends is the learner's own model. Not promised: that updates far larger than the trial's work.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Awaitable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError
from torch import Tensor

from milepost.actors.engine import Completion, Transfer
from milepost.cluster.base.exits import ConfigError, DependencyLost
from milepost.cluster.base.files import file_sha256
from milepost.cluster.base.weight_folders import WeightFolder
from milepost.cluster.hosts.ray_start import last_line
from milepost.cluster.pools.engine_pool import EnginePool
from milepost.cluster.pools.stored_weights import put
from milepost.cluster.pools.weights import FileDelivery, StoredDelivery, chosen_way, lone_turn
from milepost.envs.types import Turn
from milepost.learner.batch.pack import collate
from milepost.learner.batch.sample import lone_samples
from milepost.learner.zero.policy import batch_logprobs, load_policy

logger = logging.getLogger(__name__)
_NOISE = 0.1
"""Of the perturbation, relative to a tensor's root mean square."""
_LEAST_NOISE = 0.01
"""Absolute, for tensors of zeros, as biases are at first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is tried: a model folder, served as `version`."""

    model: Path
    version: int
    prompts: list[list[int]]
    temperature: float
    limit: float
    """Largest mean |log-prob of the engines - of the model| in nats per token."""
    timeout_s: float
    transfer: Transfer
    sleeps: bool
    """Whether engines sleep before an update: a GPU where that fails is better known now."""


async def require_updates(trial: Trial, engines: EnginePool, weights: WeightFolder) -> None:
    """Publish perturbed weights, compare, and put the true ones back.

    Raises ConfigError with the family and the tensors if the engines do not serve what was published, DependencyLost
    if an engine dies of it.
    """
    publication = await asyncio.to_thread(_Publication, trial, engines, weights)
    gap = await publication.gap_with(publication.kinds)
    if not gap <= trial.limit:
        guilty = await publication.guilty()
        raise ConfigError(
            f"model: engines do not serve new weights of the family {publication.family!r} as the learner means them: "
            f"after a trial update log-probs differ by {gap:.1e} nats per token (learner.parity_limit is "
            f"{trial.limit:.0e}), {_blame(guilty)}; docs/models.md lists the families that work"
        )
    await publication.restore()


class _Publication:
    """Weights of one model, perturbed in part, on their way to all engines."""

    def __init__(self, trial: Trial, engines: EnginePool, weights: WeightFolder) -> None:
        self._trial = trial
        self._engines = engines
        self._file = weights.file(trial.version + 1)
        self._for_engines = weights.for_engines
        self._model = load_policy(trial.model).eval().requires_grad_(False)
        self._true = {name: tensor.clone() for name, tensor in self._model.named_parameters()}
        self.family = str(self._model.config.model_type)

    @property
    def kinds(self) -> list[str]:
        """The names of tensors without the numbers of layers and experts."""
        return list(dict.fromkeys(_kind(name) for name in self._true))

    async def gap_with(self, perturbed: Collection[str]) -> float:
        """Mean difference of log-probs after tensors of the kinds `perturbed` have got noise; NaN where one is none."""
        await asyncio.to_thread(self._write, perturbed)
        await self._publish(self._trial.version + 1)
        try:
            turns = await self._answers()
        except ValueError:  # a log-prob that is not finite makes no turn
            return math.nan
        return await asyncio.to_thread(self._gap, turns)

    async def _answers(self) -> list[Turn]:
        """Every engine in rotation answers every prompt; one that is lost answers nothing."""
        prompts = self._trial.prompts
        calls = [(prompt, handle.generate.remote(prompt)) for handle in self._engines.handles for prompt in prompts]
        answers = await asyncio.gather(*(_answer(call) for _, call in calls))
        return [
            lone_turn(prompt, answer) for (prompt, _), answer in zip(calls, answers, strict=True) if answer is not None
        ]

    async def guilty(self) -> list[str]:
        """Kinds of tensors of which the engines do not get an update; none where no kind alone shows it."""
        if not await self.gap_with([]) <= self._trial.limit:
            return []  # even the weights they started with come out otherwise when they are sent
        return [kind for kind in self.kinds if not await self.gap_with([kind]) <= self._trial.limit]

    async def restore(self) -> None:
        """Put the true weights back, under their version."""
        await asyncio.to_thread(self._write, [])
        await self._publish(self._trial.version)
        self._file.unlink()

    def _write(self, perturbed: Collection[str]) -> None:
        generator = torch.Generator().manual_seed(0)
        for name, tensor in self._model.named_parameters():
            tensor.copy_(self._true[name])
            if _kind(name) in perturbed:
                scale = _NOISE * float(tensor.square().mean().sqrt()) + _LEAST_NOISE
                tensor.add_(scale * torch.randn(tensor.shape, generator=generator))
        tensors: dict[str, Tensor] = {name: tensor.contiguous() for name, tensor in self._model.named_parameters()}
        safetensors.torch.save_file(tensors, self._file)

    async def _publish(self, version: int) -> None:
        delivery = await asyncio.to_thread(self._delivery, version)
        try:
            async with asyncio.timeout(self._trial.timeout_s):
                paths = await asyncio.gather(*(delivery.bring(handle) for handle in self._engines.handles))
        except RayTaskError as error:
            raise ConfigError(
                f"engine.transfer = {self._trial.transfer!r}: an engine did not get new weights: {last_line(error)}"
            ) from error
        except (RayActorError, TimeoutError) as error:
            raise self._lost(error) from error
        try:
            async with asyncio.timeout(self._trial.timeout_s):
                loads = zip(self._engines.handles, paths, strict=True)
                await asyncio.gather(*(self._one(handle, version, path) for handle, path in loads))
        except (RayActorError, TimeoutError) as error:
            raise self._lost(error) from error
        except RayTaskError as error:
            raise ConfigError(
                f"model: the engine cannot take new weights of the family {self.family!r} ({last_line(error)}); "
                "docs/models.md lists the families that work"
            ) from error

    def _delivery(self, version: int) -> FileDelivery | StoredDelivery:
        if chosen_way(self._trial.transfer) == "object_store":
            return StoredDelivery(stored=put(self._file.read_bytes(), folder=self._for_engines), version=version)
        return FileDelivery(path=self._file, sha256=file_sha256(self._file), version=version)

    async def _one(self, handle: Any, version: int, path: str) -> None:
        await (handle.sleep if self._trial.sleeps else handle.pause).remote()
        await handle.load.remote(path)
        await handle.commit.remote(version, True)

    @staticmethod
    def _lost(error: Exception) -> DependencyLost:
        return DependencyLost(f"an engine was lost in a trial update of its weights: {last_line(error)}")

    def _gap(self, turns: list[Turn]) -> float:
        batch = collate(lone_samples(turns))
        logprobs, _ = batch_logprobs(self._model, batch, self._trial.temperature)
        return float((logprobs - batch.rollout_logprobs)[batch.loss_mask].abs().mean())


async def _answer(call: Awaitable[Completion]) -> Completion | None:
    try:
        return await call
    except RayError as error:
        logger.warning("an engine did not answer a prompt: %s", last_line(error))
        return None


def _kind(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `model.layers.*.mlp.up_proj.weight`."""
    return re.sub(r"\.\d+\.", ".*.", name)


def _blame(guilty: list[str]) -> str:
    return f"because of {', '.join(guilty)}" if guilty else "also where its own weights are sent again"
