"""One update of the policy: groups of trajectories in, an optimizer step (or several) out.

Every rank runs this with the same groups: credit is cheap and computed redundantly, for advantages see whole groups;
then each rank trains on its share. All decisions (skip, refuse, stop) follow from numbers that were summed over ranks,
so all ranks take the same branch. What an engine must offer is declared here; which groups to train on, checkpoints and
the way of new weights to the inference engines are the caller's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from milepost.envs.types import Group, Turn
from milepost.learner import pack
from milepost.learner.config import LearnerConfig
from milepost.learner.credit.assignment import Credit, CreditGroup, from_group
from milepost.learner.credit.scaling import scaled
from milepost.learner.credit.strategies import CreditConfig, build
from milepost.learner.filter import FilterConfig, Verdict, keep_groups
from milepost.learner.loss import LossConfig, LossTerms, Policies, denominator, policy_loss
from milepost.learner.metrics import (
    add,
    credit_metrics,
    mean,
    mismatch_sums,
    parity_sums,
    parity_sums_of,
    timed,
    token_metrics,
)
from milepost.learner.pack import MicroBatch
from milepost.learner.sample import Sample, lone_samples, samples
from milepost.learner.training import StepMetrics, TrainingEngine


class ParityError(RuntimeError):
    """Engine and learner disagree on tokens of the current version; the step was cancelled, weights are unchanged."""


class DivergenceError(RuntimeError):
    """Several steps in a row had a loss or gradient that is not finite."""


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What an update did. `parity` numbers are mean absolute differences of log-probs, in nats per token."""

    version: int
    """Policy version that was trained; the result is the next one if `optimizer_steps > 0`."""
    optimizer_steps: int
    skipped_steps: int
    losses: tuple[float, ...]
    verdicts: tuple[Verdict, ...]
    """One per group, in the order given."""
    tokens: int
    """Number of trained tokens."""
    num_samples: int
    prefix_breaks: int
    """How often a turn's prompt did not continue the turn before."""
    parity: float | None
    """On tokens sampled by `version`; None if there are none."""
    parity_all: float | None
    metrics: dict[str, float]
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class _Share:
    """This rank's part of one optimizer step."""

    micro_batches: list[MicroBatch]
    total: float
    """Denominator of the loss, over all ranks."""
    proximal: list[Tensor] | None = None
    reference: list[Tensor] | None = None


class LearnerRank:
    """Trains one rank's share. State between updates: the engine's, and how many steps in a row were skipped."""

    def __init__(
        self,
        engine: TrainingEngine,
        config: LearnerConfig,
        *,
        loss: LossConfig,
        credit: CreditConfig,
        filter_config: FilterConfig,
        temperature: float,
    ) -> None:
        """`temperature` is the one that rollouts were sampled at: log-probs are of that distribution."""
        self._engine = engine
        self._config = config
        self._loss = loss
        self._temperature = temperature
        self._strategy = build(credit)
        self._filter = filter_config
        self._skipped_in_a_row = 0

    def train(self, groups: Sequence[Group], version: int) -> UpdateReport:
        """Train on `groups` with the weights of policy `version`; every rank passes the same.

        If the filter keeps nothing, no step is made and the report says so.

        Raises:
            ValueError: ranks were given different groups, or a group's states do not form chains.
            ParityError, DivergenceError: see there.
        """
        self._check_same_work(groups, version)
        seconds: dict[str, float] = {}
        with timed(seconds, "credit"):
            graphs = [from_group(group) for group in groups]
            credits = [self._strategy.assign(graph) for graph in graphs]
            verdicts = keep_groups(graphs, credits, self._filter)
            kept = [k for k, verdict in enumerate(verdicts) if verdict.keep]
            credits = self._scaled([graphs[k] for k in kept], [credits[k] for k in kept])
        with timed(seconds, "pack"):
            pool = _samples([groups[k] for k in kept], credits)
            shares = self._shares(pool, steps=self._config.minibatches)
        steps, parity = self._steps(shares, version, seconds)
        sums: dict[str, float] = {}
        for step in steps:
            if step.applied:  # the sums of a skipped one may not be finite
                add(sums, step.sums)
        trajectories = sum(len(groups[k].trajectories) for k in kept)
        return UpdateReport(
            version=version,
            optimizer_steps=sum(step.applied for step in steps),
            skipped_steps=sum(not step.applied for step in steps),
            losses=tuple(step.loss for step in steps),
            verdicts=tuple(verdicts),
            tokens=sum(sample.num_trained for sample in pool),
            num_samples=len(pool),
            prefix_breaks=len(pool) - trajectories,
            parity=mean(parity, "parity_current", "tokens_current"),
            parity_all=mean(parity, "parity", "tokens"),
            metrics=credit_metrics(credits, verdicts) | token_metrics(sums) | _step_metrics(steps),
            seconds=seconds,
        )

    def check_parity(self, turns: Sequence[Turn], version: int) -> float | None:
        """Mean |log-prob of learner - of engine| per token over turns that `version` sampled, the same on every rank.

        For asynchronous runs, whose groups hold no token of the current version. None if no token is of `version`.

        Raises:
            ParityError: the mean is over the limit.
        """
        (share,) = self._shares(lone_samples(turns), steps=1)
        sums = parity_sums_of(share.micro_batches, self._logprobs(share), version)
        sums = self._engine.all_sum(sums)
        self._check_parity(sums, version)
        return mean(sums, "parity_current", "tokens_current")

    def _check_same_work(self, groups: Sequence[Group], version: int) -> None:
        if not self._engine.all_equal(_fingerprint(groups, version)):
            raise ValueError(
                f"learner ranks were given different groups or versions; rank {self._engine.rank} has "
                f"version {version} and groups {[group.group_id for group in groups]}"
            )

    def _scaled(self, graphs: Sequence[CreditGroup], credits: Sequence[Credit]) -> list[Credit]:
        """On one scale over the batch, each turn counted as often as the loss counts it."""
        by_token = self._loss.aggregation == "token"
        weights = [
            [
                np.array([turn.num_tokens if by_token else 1 for turn in t.turns], dtype=np.float64)
                for t in graph.trajectories
            ]
            for graph in graphs
        ]
        return scaled(credits, weights, self._strategy.scaling)

    def _shares(self, pool: Sequence[Sample], *, steps: int) -> list[_Share]:
        """This rank's micro-batches for each optimizer step; all ranks get equally many."""
        shares = []
        for part in pack.minibatches(pool, steps):
            ranks = pack.plan(
                part, num_ranks=self._engine.world_size, max_tokens=self._config.max_tokens_per_micro_batch
            )
            micro_batches = [pack.collate(rows) for rows in ranks[self._engine.rank]]
            shares.append(_Share(micro_batches, denominator(part, self._loss.aggregation)))
        return shares

    def _steps(
        self, shares: Sequence[_Share], version: int, seconds: dict[str, float]
    ) -> tuple[list[StepMetrics], dict[str, float]]:
        """The optimizer steps and the parity sums, which are measured before the first of them.

        With one step the proximal policy is the current one of the same pass; with several it is computed first.
        """
        parity: dict[str, float] = {}
        if len(shares) > 1:
            with timed(seconds, "proximal"):
                shares = [replace(share, proximal=self._logprobs(share)) for share in shares]
                for share in shares:
                    add(parity, parity_sums_of(share.micro_batches, share.proximal or (), version))
                parity = self._engine.all_sum(parity)
                self._check_parity(parity, version)
        steps = []
        for share in shares:
            with timed(seconds, "update"):
                steps.append(self._step(share, version))
            self._count_skipped(steps[-1])
        return steps, parity if len(shares) > 1 or not steps else dict(steps[0].sums)

    def _logprobs(self, share: _Share) -> list[Tensor]:
        return self._engine.token_logprobs(share.micro_batches, temperature=self._temperature)

    def _step(self, share: _Share, version: int) -> StepMetrics:
        references = None
        if self._loss.kl_coef > 0:
            references = self._engine.reference_logprobs(share.micro_batches, temperature=self._temperature)

        def loss_fn(k: int, batch: MicroBatch, logprobs: Tensor, entropies: Tensor) -> LossTerms:
            proximal = logprobs.detach() if share.proximal is None else share.proximal[k]
            reference = None if references is None else references[k]
            terms = policy_loss(batch, Policies(logprobs, proximal, reference), config=self._loss, total=share.total)
            add(terms.sums, {"entropy": float(entropies[batch.loss_mask].double().sum())})
            add(terms.sums, parity_sums(batch, proximal, version))
            add(terms.sums, mismatch_sums(batch, proximal, self._loss))
            return terms

        def approve(sums: Mapping[str, float]) -> None:
            if share.proximal is None:
                self._check_parity(sums, version)

        return self._engine.update(share.micro_batches, loss_fn, temperature=self._temperature, approve=approve)

    def _check_parity(self, sums: Mapping[str, float], version: int) -> None:
        gap = mean(sums, "parity_current", "tokens_current")
        if gap is not None and not gap <= self._config.parity_limit:
            raise ParityError(
                f"learner and engine differ by {gap:.3g} nats per token over {sums['tokens_current']:.0f} tokens of "
                f"version {version}, limit {self._config.parity_limit:.3g}: compare their weights, temperature, dtype"
            )

    def _count_skipped(self, step: StepMetrics) -> None:
        self._skipped_in_a_row = 0 if step.applied else self._skipped_in_a_row + 1
        if self._skipped_in_a_row >= self._config.stop_on_skipped:
            raise DivergenceError(
                f"{self._skipped_in_a_row} steps in a row had a loss or gradient that is not finite (last loss "
                f"{step.loss}, gradient norm {step.grad_norm}): lower lr or go back to a checkpoint"
            )


def _samples(groups: Sequence[Group], credits: Sequence[Credit]) -> list[Sample]:
    found: list[Sample] = []
    for group, credit in zip(groups, credits, strict=True):
        for i, trajectory in enumerate(group.trajectories):
            advantages = credit.total[i] if credit.token_total is None else credit.token_total[i]
            targets = None if credit.value_targets is None else credit.value_targets[i]
            found.extend(samples(trajectory, advantages, targets))
    return found


def _fingerprint(groups: Sequence[Group], version: int) -> int:
    """48 bits that differ (almost surely) between ranks with different work."""
    digest = hashlib.sha256(str(version).encode())
    for group in groups:
        shape = [(t.index, len(t.turns), t.num_tokens) for t in group.trajectories]
        digest.update(f"|{group.group_id}:{shape}".encode())
    return int.from_bytes(digest.digest()[:6], "big")


def _step_metrics(steps: Sequence[StepMetrics]) -> dict[str, float]:
    """Largest gradient norm and last learning rate; a norm that isn't finite is left to `skipped_steps`."""
    norms = [step.grad_norm for step in steps if math.isfinite(step.grad_norm)]
    metrics = {"grad_norm": max(norms)} if norms else {}
    return metrics | ({"lr": steps[-1].lr} if steps else {})
