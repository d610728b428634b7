"""The optimizer steps of an update: minibatches of a pool of samples in, policy and critic one step each per minibatch.

Decisions (skip, refuse, stop) follow from numbers that were summed over ranks, so all ranks take the same branch. Which
samples there are, and their advantages, were decided before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from torch import Tensor

from milepost.envs.types import Turn
from milepost.learner.batch import pack
from milepost.learner.batch.pack import MicroBatch
from milepost.learner.batch.sample import Sample, lone_samples
from milepost.learner.loss.critic import count_targets, value_loss
from milepost.learner.loss.entropy import UsualEntropy, num_turns
from milepost.learner.loss.loss import LossTerms, Policies, denominator
from milepost.learner.loss.objective import Entropies, objective_terms
from milepost.learner.loss.offpolicy import approximate_proximal
from milepost.learner.recipe import Recipe
from milepost.learner.timing import timed
from milepost.learner.token_statistics import TokenStatistics
from milepost.learner.training import StepMetrics, TrainingBackend, ValueFn
from milepost.learner.update_metrics import add, mean, mismatch_sums, parity_sums, parity_sums_of


class ParityError(RuntimeError):
    """Engine and learner disagree on tokens of the current version; the step was cancelled, weights are unchanged."""


class DivergenceError(RuntimeError):
    """Several steps in a row, of policy or critic, had a loss or gradient that is not finite."""


@dataclass(frozen=True, slots=True, eq=False)
class Minibatch:
    """This rank's part of one optimizer step."""

    micro_batches: list[MicroBatch]
    total: float
    """Denominator of the loss, over all ranks."""
    num_turns: int
    """One more than the largest turn index, over all ranks."""
    value_total: int
    """How many estimates of the critic have a target, over all ranks."""
    passed: pack.Passed
    """What of all ranks' micro-batches passes through the model."""
    old_values: list[Tensor] | None
    """The critic's estimates before the update, where there is a critic."""
    proximal: list[Tensor] | None = None
    """Log-probs at the start of the update; None: those of the step's own pass."""


class Stepper:
    """Makes the steps on one rank. State between updates: how many steps in a row were skipped, usual entropies."""

    def __init__(self, backend: TrainingBackend, recipe: Recipe) -> None:
        self._backend = backend
        self._config = recipe.learner
        self._objective = recipe.objective
        self._critic = recipe.trained_critic
        self._temperature = recipe.temperature
        self._usual = UsualEntropy(recipe.objective.entropy.memory)
        self._skipped_in_a_row = {"policy": 0, "critic": 0}

    def minibatches(self, pool: Sequence[Sample], *, steps: int, statistics: TokenStatistics | None) -> list[Minibatch]:
        """This rank's micro-batches for each optimizer step; all ranks get equally many."""
        minibatches = []
        parts = pack.minibatches(pool, steps)
        recompute = len(parts) > 1 and self._objective.offpolicy.proximal == "recompute"
        for part in parts:
            packing, max_tokens = self._backend.packing, self._config.max_tokens_per_micro_batch
            ranks = pack.plan(part, num_ranks=self._backend.world_size, max_tokens=max_tokens, packing=packing)
            rows = ranks[self._backend.rank]
            micro_batches = [pack.collate(members, packing) for members in rows]
            minibatch = Minibatch(
                micro_batches=micro_batches,
                total=denominator(part, self._objective.loss),
                num_turns=num_turns(part),
                value_total=count_targets(part),
                passed=pack.Passed.of(ranks, packing),
                old_values=statistics.values_of(rows, micro_batches) if statistics else None,
                proximal=statistics.logprobs_of(rows, micro_batches) if statistics and recompute else None,
            )
            minibatches.append(minibatch)
        return minibatches

    def policy_steps(
        self,
        minibatches: Sequence[Minibatch],
        version: int,
        seconds: dict[str, float],
        *,
        probe: Callable[[], Sequence[Turn]] = tuple,
        lr_factor: float = 1.0,
    ) -> tuple[list[StepMetrics], dict[str, float]]:
        """The optimizer steps and the parity sums, which are taken before the first of them.

        In the first step the proximal policy is the current one of the same pass. For further steps it is computed
        before the first, unless credit had it measured, or approximated in each; then parity is that of the first
        step's minibatch. The turns of `probe` count for parity, too; they are asked for as late as that allows: when
        the first step has its gradient.
        """
        recompute = len(minibatches) > 1 and self._objective.offpolicy.proximal == "recompute"
        parity: dict[str, float] = {}
        if recompute:
            with timed(seconds, "proximal"):
                minibatches = [minibatches[0], *map(self._with_proximal, minibatches[1:])]
                for minibatch in minibatches:
                    if minibatch.proximal is not None:
                        add(parity, parity_sums_of(minibatch.micro_batches, minibatch.proximal, version))
                parity = self._backend.all_sum(parity)
                self._check_parity(parity, version)

        @cache
        def judge() -> dict[str, float]:
            with timed(seconds, "parity"):
                return self.probed(probe(), version)
            return {}

        steps: list[StepMetrics] = []
        for minibatch in minibatches:
            with timed(seconds, "update"):
                progress = sum(step.applied for step in steps) / len(minibatches)
                self._backend.scale_rate(lr_factor)
                steps.append(self._step(minibatch, version, progress, judge))
            self._count_skipped("policy", steps[-1])
        probed = judge()
        self._usual.learn(applied_sums(steps))
        if steps and minibatches[0].proximal is None:
            add(parity, steps[0].sums)
        add(probed, parity)
        return steps, probed

    def critic_steps(
        self, pool: Sequence[Sample], statistics: TokenStatistics | None, seconds: dict[str, float]
    ) -> list[StepMetrics]:
        """The optimizer steps of a critic with a trunk of its own; none for others.

        Only those of the first epoch carry sums: later ones are asked about targets that the critic has seen.
        """
        steps: list[StepMetrics] = []
        if self._critic is None or self._critic.trunk == "shared":
            return steps
        minibatches = self.minibatches(pool, steps=self._critic.minibatches, statistics=statistics)
        for epoch in range(self._critic.epochs):
            for minibatch in [minibatch for minibatch in minibatches if minibatch.value_total]:
                with timed(seconds, "critic"):
                    value_fn = self._value_fn(minibatch, with_sums=epoch == 0)
                    steps.append(self._backend.update_critic(minibatch.micro_batches, value_fn))
                self._count_skipped("critic", steps[-1])
        return steps

    def probed(self, turns: Sequence[Turn], version: int) -> dict[str, float]:
        """Parity sums, over all ranks, of turns that belong to no update; empty without any.

        Raises:
            ParityError: their mean is over the limit.
        """
        if not turns:
            return {}
        (minibatch,) = self.minibatches(lone_samples(turns), steps=1, statistics=None)
        sums = parity_sums_of(minibatch.micro_batches, self._logprobs(minibatch), version)
        sums = self._backend.all_sum(sums)
        self._check_parity(sums, version)
        return sums

    def _value_fn(self, minibatch: Minibatch, *, with_sums: bool = True) -> ValueFn:
        critic, old_values = self._critic, minibatch.old_values
        assert critic is not None
        assert old_values is not None
        weight = critic.value_coef if critic.trunk == "shared" else 1.0

        def value_fn(k: int, batch: MicroBatch, values: Tensor) -> LossTerms:
            old = old_values[k].to(values.device)
            terms = value_loss(batch, values, old, clip=critic.value_clip, total=max(minibatch.value_total, 1))
            return LossTerms(weight * terms.loss, terms.sums if with_sums else {})

        return value_fn

    def _with_proximal(self, minibatch: Minibatch) -> Minibatch:
        return replace(minibatch, proximal=minibatch.proximal or self._logprobs(minibatch))

    def _logprobs(self, minibatch: Minibatch) -> list[Tensor]:
        return self._backend.token_logprobs(minibatch.micro_batches, temperature=self._temperature)

    def _step(self, minibatch: Minibatch, version: int, progress: float, judge: Callable[[], Any]) -> StepMetrics:
        """One optimizer step; `progress` is the share of the update's steps made before it.

        `judge` is called before the weights change, and may raise.
        """
        objective, references = self._objective, None
        if objective.loss.kl_coef > 0:
            references = self._backend.reference_logprobs(minibatch.micro_batches, temperature=self._temperature)

        def loss_fn(k: int, batch: MicroBatch, logprobs: Tensor, entropies: Tensor) -> LossTerms:
            if minibatch.proximal is None:
                proximal = approximate_proximal(
                    logprobs, batch.rollout_logprobs, batch.versions, version=version, progress=progress
                )
            else:
                proximal = minibatch.proximal[k].to(logprobs.device)
            policies = Policies(logprobs, proximal, None if references is None else references[k])
            usual = None if objective.entropy.band is None else self._usual.of(batch.turn_index)
            seen = Entropies(entropies, usual, minibatch.num_turns)
            terms = objective_terms(batch, policies, seen, objective=objective, total=minibatch.total)
            add(terms.sums, parity_sums(batch, proximal, version))
            add(terms.sums, mismatch_sums(batch, proximal, objective.offpolicy))
            return terms

        def approve(sums: Mapping[str, float]) -> None:
            if minibatch.proximal is None and progress == 0:
                self._check_parity(sums, version)
            judge()

        shared = self._critic is not None and self._critic.trunk == "shared"
        return self._backend.update(
            minibatch.micro_batches,
            loss_fn,
            temperature=self._temperature,
            approve=approve,
            value_fn=self._value_fn(minibatch) if shared else None,
            entropy_gradient=objective.entropy.coef > 0,
        )

    def _check_parity(self, sums: Mapping[str, float], version: int) -> None:
        gap = mean(sums, "parity_current", "tokens_current")
        if gap is not None and not gap <= self._config.parity_limit:
            raise ParityError(
                f"learner and engine differ by {gap:.3g} nats per token over {sums['tokens_current']:.0f} tokens of "
                f"version {version}, limit {self._config.parity_limit:.3g}: compare their weights, temperature, dtype"
            )

    def _count_skipped(self, which: Literal["policy", "critic"], step: StepMetrics) -> None:
        self._skipped_in_a_row[which] = 0 if step.applied else self._skipped_in_a_row[which] + 1
        if self._skipped_in_a_row[which] >= self._config.stop_on_skipped:
            raise DivergenceError(
                f"{self._skipped_in_a_row[which]} steps of the {which} in a row had a loss or gradient that is not "
                f"finite (last loss {step.loss}, gradient norm {step.grad_norm}): lower lr or go back to a checkpoint"
            )


def applied_sums(steps: Sequence[StepMetrics]) -> dict[str, float]:
    """The sums of all steps that were made; those of a skipped one may not be finite."""
    sums: dict[str, float] = {}
    for step in steps:
        if step.applied:
            add(sums, step.sums)
    return sums
