"""One update of the policy: groups of trajectories in, an optimizer step (or several) out.

Every rank runs this with the same groups: credit is cheap and computed redundantly, for advantages see whole groups;
then each rank trains on its share (`milepost.learner.steps`). Which groups to train on, checkpoints and the way of new
weights to the inference engines are the caller's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Final

from milepost.envs.types import Group, Turn
from milepost.learner.batch import pack
from milepost.learner.batch.sample import Sample, samples
from milepost.learner.credit.assignment import Credit, CreditGroup, from_group
from milepost.learner.credit.filter import FilterConfig, Verdict, weighted
from milepost.learner.credit.modulators import modulate
from milepost.learner.credit.strategies.registry import build
from milepost.learner.environments import keep_groups_of_each, scaled_of_each
from milepost.learner.episode_credit import EpisodeCredit, credits_of_groups
from milepost.learner.health.mutual_information import cross_samples, estimate, first_turns, score_matrix
from milepost.learner.loss.critic import critic_metrics
from milepost.learner.loss.loss import turn_weights
from milepost.learner.recipe import Recipe, UpdateOptions
from milepost.learner.steps import Stepper, applied_sums
from milepost.learner.timing import timed
from milepost.learner.token_statistics import STATISTICS, TokenStatistics, compute_token_statistics
from milepost.learner.training import StepMetrics, TrainingBackend
from milepost.learner.update_metrics import credit_metrics, mean, measured, token_metrics

DEFAULT_OPTIONS: Final = UpdateOptions()
_PROMPTS: Final = 8
_RESPONSES: Final = 4


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What an update did. `parity` numbers are mean absolute differences of log-probs, in nats per token."""

    version: int
    """Policy version that was trained."""
    skipped_steps: int
    losses: tuple[float, ...]
    verdicts: tuple[Verdict, ...]
    """One per group, in the order given."""
    credits: tuple[tuple[EpisodeCredit, ...], ...]
    """Of each group's trajectories, in the order given."""
    tokens: int
    """Number of trained tokens."""
    num_samples: int
    prefix_breaks: int
    """How often a turn's prompt did not continue the turn before."""
    padding_share: float
    """Of the token positions that passed through the model in the policy's steps, mean over them."""
    parity: float | None
    """On tokens sampled by `version`, those of the probe included; None if there are none."""
    metrics: dict[str, float]
    seconds: dict[str, float]


class LearnerRank:
    """Trains one rank's share. State between updates: the backend's, and the stepper's."""

    def __init__(self, backend: TrainingBackend, recipe: Recipe) -> None:
        """`backend` holds the critic of the recipe, if it has one."""
        self._backend = backend
        self._recipe = recipe
        self._strategy = build(recipe.credit)
        self._stepper = Stepper(backend, recipe)

    def train(
        self,
        groups: Sequence[Group],
        version: int,
        options: UpdateOptions = DEFAULT_OPTIONS,
        *,
        probe: Callable[[], Sequence[Turn]] = tuple,
    ) -> UpdateReport:
        """Train on `groups` with the weights of policy `version`; every rank passes the same.

        If the filter keeps nothing, no step is made and the report says so. `probe` gives turns that engines sampled
        for no group, the same on every rank: before the first step, parity is judged on their tokens of `version`.

        Raises:
            ValueError: ranks were given different groups, or a group's states do not form chains.
            ParityError, DivergenceError: see there.
        """
        self._check_same_work(groups, version)
        seconds: dict[str, float] = {}
        with timed(seconds, "credit"):
            credit_groups = _with_histories([from_group(group) for group in groups], options)
        statistics = self._statistics(groups, seconds)
        with timed(seconds, "credit"):
            verdicts, assigned, credits = self._credited(
                credit_groups if statistics is None else statistics.filled(credit_groups),
                [group.task.env_name for group in groups],
                options.filter or self._recipe.filter,
            )
        with timed(seconds, "pack"):
            kept = [group for group, verdict in zip(groups, verdicts, strict=True) if verdict.keep]
            pool = _samples(kept, credits)
            minibatches = self._stepper.minibatches(pool, steps=self._recipe.learner.minibatches, statistics=statistics)
        critic_steps = self._stepper.critic_steps(pool, statistics, seconds)
        learns = self._policy_learns(version)
        steps, parity = self._stepper.policy_steps(
            minibatches if learns else [], version, seconds, probe=probe, lr_factor=options.lr_factor
        )
        sums = applied_sums([*critic_steps, *steps])
        return UpdateReport(
            version=version,
            skipped_steps=sum(not step.applied for step in steps),
            losses=tuple(step.loss for step in steps),
            verdicts=tuple(verdicts),
            credits=credits_of_groups(
                assigned, credits if learns else [], [learns and verdict.keep for verdict in verdicts]
            ),
            tokens=sum(sample.num_trained for sample in pool),
            num_samples=len(pool),
            prefix_breaks=len(pool) - sum(len(group.trajectories) for group in kept),
            padding_share=fmean(each.passed.padding_share for each in minibatches) if minibatches else 0.0,
            parity=mean(parity, "parity_current", "tokens_current"),
            metrics=measured("credit", lambda: credit_metrics(credits, verdicts))
            | measured("tokens", lambda: token_metrics(sums))
            | measured("critic", lambda: critic_metrics(sums))
            | _step_metrics(steps)
            | _norm_metric("critic_grad_norm", critic_steps)
            | ({"prefix_share": fmean(each.passed.prefix_share for each in minibatches)} if minibatches else {}),
            seconds=seconds,
        )

    def check_parity(self, turns: Sequence[Turn], version: int) -> float | None:
        """Mean |log-prob of learner - of engine| per token over turns that `version` sampled, the same on every rank.

        None if no token is of `version`.

        Raises:
            ParityError: the mean is over the limit.
        """
        return mean(self._stepper.probed(turns, version), "parity_current", "tokens_current")

    def mutual_information(self, groups: Sequence[Group]) -> float | None:
        """How much first responses depend on their prompts under the current weights, in nats, the same on every rank.

        None where the groups hold fewer than two different prompts.
        """
        turns = first_turns(groups, num_prompts=_PROMPTS, num_responses=_RESPONSES)
        if not turns:
            return None
        cross = cross_samples(turns)
        max_tokens = self._recipe.learner.max_tokens_per_micro_batch
        backend, packing = self._backend, self._backend.packing
        ranks = pack.plan(cross.samples, num_ranks=backend.world_size, max_tokens=max_tokens, packing=packing)
        rows = ranks[backend.rank]
        batches = [pack.collate(members, packing) for members in rows]
        logprobs = self._backend.token_logprobs(batches, temperature=self._recipe.temperature)
        scores = self._backend.all_sum_array(score_matrix(cross, rows, logprobs))
        return estimate(scores, cross.own)

    def _check_same_work(self, groups: Sequence[Group], version: int) -> None:
        if not self._backend.all_equal(_fingerprint(groups, version)):
            raise ValueError(
                f"learner ranks were given different groups or versions; rank {self._backend.rank} has "
                f"version {version} and groups {[group.group_id for group in groups]}"
            )

    def _credited(
        self, credit_groups: Sequence[CreditGroup], envs: Sequence[str], judged_by: FilterConfig
    ) -> tuple[list[Verdict], list[Credit], list[Credit]]:
        """A verdict and the strategy's credit for every group, and for those that are kept what the loss uses.

        `envs` are their environments.
        """
        credits = [self._strategy.assign(credit_group) for credit_group in credit_groups]
        verdicts = keep_groups_of_each(envs, credit_groups, credits, judged_by)
        kept = [k for k, verdict in enumerate(verdicts) if verdict.keep]
        chosen = [credit_groups[k] for k in kept]
        modulated = modulate(chosen, [credits[k] for k in kept], self._recipe.credit.modulators)
        brought = self._scaled(chosen, [envs[k] for k in kept], modulated)
        return verdicts, credits, weighted(brought, [verdicts[k] for k in kept])

    def _scaled(
        self, credit_groups: Sequence[CreditGroup], envs: Sequence[str], credits: Sequence[Credit]
    ) -> list[Credit]:
        """On one scale over the batch's groups of an environment, each turn counted as often as the loss counts it."""
        weights = [
            [
                turn_weights([turn.num_tokens for turn in t.turns], self._recipe.objective.loss.aggregation)
                for t in credit_group.trajectories
            ]
            for credit_group in credit_groups
        ]
        return scaled_of_each(envs, credits, weights, self._strategy.scaling)

    def _statistics(self, groups: Sequence[Group], seconds: dict[str, float]) -> TokenStatistics | None:
        """What strategy and modulators read of the current weights, in all groups: they judge before the filter."""
        recipe = self._recipe
        if not recipe.needs & STATISTICS or not groups:
            return None
        with timed(seconds, "measure"):
            return compute_token_statistics(
                self._backend,
                groups,
                needs=recipe.needs,
                temperature=recipe.temperature,
                max_tokens=recipe.learner.max_tokens_per_micro_batch,
            )

    def _policy_learns(self, version: int) -> bool:
        critic = self._recipe.trained_critic
        return critic is None or version >= critic.warmup_updates


def _with_histories(credit_groups: list[CreditGroup], options: UpdateOptions) -> list[CreditGroup]:
    if options.histories is None:
        return credit_groups
    return [
        replace(credit_group, history=past) for credit_group, past in zip(credit_groups, options.histories, strict=True)
    ]


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
    """Largest gradient norm and last learning rate."""
    return _norm_metric("grad_norm", steps) | ({"lr": steps[-1].lr} if steps else {})


def _norm_metric(name: str, steps: Sequence[StepMetrics]) -> dict[str, float]:
    """Largest gradient norm; one that isn't finite is left to `skipped_steps`."""
    norms = [step.grad_norm for step in steps if math.isfinite(step.grad_norm)]
    return {name: max(norms)} if norms else {}
