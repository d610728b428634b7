"""What one way of laying rows out computes, takes and needs: the learner alone, through its public interface.

It runs in a process of its own, so that its peak of memory is its own, and running out of it ends nothing else.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.distributed import FileStore

from milepost.learner.batch.sample import Sample
from milepost.learner.config import LearnerConfig
from milepost.learner.credit.filter import FilterConfig
from milepost.learner.credit.strategies.crbc import CRBCConfig
from milepost.learner.loss.critic import CriticConfig
from milepost.learner.loss.objective import Objective
from milepost.learner.recipe import Recipe
from milepost.learner.steps import Minibatch, Stepper
from milepost.learner.training import ProcessGroupMember, StepMetrics
from milepost.learner.zero.actor_critic import ActorCritic, Models
from tests.gpu.shapes import Job, Shape

_VERSION: Final = 1
"""Of the weights: no row was sampled by it, so no step is refused for want of parity with an engine."""


class Learner:
    """A rank alone."""

    def __init__(self, job: Job) -> None:
        """Load the model."""
        shape = job.shape
        largest = max(*shape.lengths, shape.rows * (shape.prompt + shape.response))
        config = LearnerConfig(
            dtype=job.dtype, gradient_checkpointing=True, max_tokens_per_micro_batch=largest, packing=job.packing
        )
        member = ProcessGroupMember(rank=0, world_size=1, store=FileStore(str(job.folder / "store"), 1))
        self.device = torch.device(job.device)
        self.backend = ActorCritic(Models(job.model), config, member=member, seed=0, device=self.device)
        recipe = Recipe(
            learner=config,
            credit=CRBCConfig(),
            filter=FilterConfig(),
            objective=Objective(),
            critic=CriticConfig(),
            temperature=1.0,
        )
        self._stepper = Stepper(self.backend, recipe)

    def minibatch(self, rows: Sequence[Sample]) -> Minibatch:
        """All rows for one step."""
        [found] = self._stepper.minibatches(rows, steps=1, statistics=None)
        return found

    def step(self, rows: Sequence[Sample]) -> StepMetrics:
        """One optimizer step on all rows."""
        [step], _ = self._stepper.policy_steps([self.minibatch(rows)], _VERSION, {})
        return step

    def logprobs(self, rows: Sequence[Sample]) -> np.ndarray:
        """Of all sampled tokens, in the order of the rows."""
        batches = self.minibatch(rows).micro_batches
        found: dict[bytes, np.ndarray] = {}
        for batch, values in zip(batches, self.backend.token_logprobs(batches, temperature=1.0), strict=True):
            for ids, mask, row in zip(batch.input_ids, batch.loss_mask, values.cpu().float(), strict=True):
                found[ids[mask].numpy().tobytes()] = row[mask].numpy()
        return np.concatenate([found[row.token_ids[row.loss_mask].tobytes()] for row in rows])

    def seconds(self, rows: Sequence[Sample], repeats: int) -> float:
        """Median time of a step, after one that is not timed."""
        self.step(rows)
        taken = []
        for _ in range(repeats):
            self._wait()
            started = time.monotonic()
            self.step(rows)
            self._wait()
            taken.append(time.monotonic() - started)
        return statistics.median(taken)

    def fingerprint(self) -> list[float]:
        """Of the weights: two sums of every tensor."""
        tensors = (tensor.float() for _, tensor in self.backend.full_tensors())
        return [each for t in tensors for each in (t.sum().item(), t.square().sum().item())]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def run(job: Job) -> None:
    """Measure, write `seen.json` and `logprobs.npy` to the job's folder, and end the process."""
    with (job.folder / "errors.txt").open("w") as errors:
        os.dup2(errors.fileno(), 2)
    learner, rows = Learner(job), job.shape.group(seed=1)
    np.save(job.folder / "logprobs.npy", learner.logprobs(rows))
    first = learner.step(rows)
    seen: dict[str, Any] = {"loss": first.loss, "grad_norm": first.grad_norm}
    if job.is_whole:
        seen["group_seconds"] = learner.seconds(rows, job.shape.repeats)
        seen["nan"] = refuses_nan(learner, rows)
        seen["saved"] = comes_back(learner, rows, job.folder / "state")
        seen["lengths"] = by_length(learner, job.shape)
    (job.folder / "seen.json").write_text(json.dumps(seen))
    os._exit(0)  # at once, as Ray ends a learner


def refuses_nan(learner: Learner, rows: Sequence[Sample]) -> bool:
    """Whether a step whose loss is not finite is not made."""
    before = learner.fingerprint()
    poisoned = replace(rows[0], advantages=np.where(rows[0].loss_mask, np.float32("nan"), np.float32(0)))
    return not learner.step([poisoned, *rows[1:]]).applied and learner.fingerprint() == before


def comes_back(learner: Learner, rows: Sequence[Sample], folder: Path) -> dict[str, Any]:
    """Whether weights that were saved come back after a step, and how far the step after them is the same."""
    folder.mkdir()
    saved = learner.fingerprint()
    learner.backend.save(folder)
    step = learner.step(rows)
    moved = learner.fingerprint() != saved
    learner.backend.load(folder)
    same = learner.fingerprint() == saved
    again = learner.step(rows)
    return {"moved": moved, "same": same, "loss_difference": abs(again.loss - step.loss)}


def by_length(learner: Learner, shape: Shape) -> list[dict[str, Any]]:
    """Time and peak of memory of a step on one row, for every length up to the first that does not fit."""
    found: list[dict[str, Any]] = []
    for tokens in shape.lengths:
        if learner.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            seconds = learner.seconds(shape.row(tokens, seed=2), shape.repeats)
        except torch.OutOfMemoryError:
            found.append({"tokens": tokens, "seconds": None, "peak": None})
            break
        peak = torch.cuda.max_memory_allocated() if learner.device.type == "cuda" else None
        found.append({"tokens": tokens, "seconds": seconds, "peak": peak})
    return found
