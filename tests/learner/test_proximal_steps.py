"""Which proximal policy and which usual entropies each step of an update sees, on a model of one table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from milepost.envs.types import Turn, VersionSpan
from milepost.learner.batch.pack import MicroBatch, collate
from milepost.learner.batch.sample import NO_TURN, NO_VERSION, Sample
from milepost.learner.config import LearnerConfig
from milepost.learner.credit.filter import FilterConfig
from milepost.learner.credit.strategies.crbc import CRBCConfig
from milepost.learner.loss.critic import CriticConfig
from milepost.learner.loss.entropy import EntropyConfig
from milepost.learner.loss.loss import token_logprobs
from milepost.learner.loss.objective import Objective
from milepost.learner.loss.offpolicy import OffPolicyConfig
from milepost.learner.recipe import Recipe
from milepost.learner.steps import ParityError, Stepper
from milepost.learner.training import StepMetrics
from milepost.learner.update_metrics import add

VOCABULARY = 8
VERSION = 4


class BigramEngine:
    """A TrainingBackend of one rank: the last token alone decides, plain gradient descent."""

    rank, world_size, packing = 0, 1, "padded"

    def __init__(self) -> None:
        self.table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1)).requires_grad_()
        self.extra_passes = 0
        self.lr_factor = 1.0

    def scale_rate(self, factor: float) -> None:
        self.lr_factor = factor

    def update(
        self,
        micro_batches: Sequence[MicroBatch],
        loss_fn: Callable[..., Any],
        *,
        approve: Callable[[Mapping[str, float]], None],
        entropy_gradient: bool,
        **_: object,
    ) -> StepMetrics:
        sums: dict[str, float] = {}
        for k, batch in enumerate(micro_batches):
            terms = loss_fn(k, batch, *self.predict(batch, entropy_gradient=entropy_gradient))
            terms.loss.backward()
            add(sums, {**terms.sums, "loss": terms.loss.item()})
        approve(sums)
        assert self.table.grad is not None
        with torch.no_grad():
            self.table -= 0.5 * self.lr_factor * self.table.grad
        self.table.grad = None
        return StepMetrics(applied=True, loss=sums.pop("loss"), grad_norm=1.0, lr=0.5, sums=sums)

    @torch.no_grad()
    def token_logprobs(self, micro_batches: Sequence[MicroBatch], **_: object) -> list[torch.Tensor]:
        self.extra_passes += 1
        return [self.predict(batch)[0] for batch in micro_batches]

    def all_sum(self, values: Mapping[str, float]) -> dict[str, float]:
        return dict(values)

    def predict(self, batch: MicroBatch, *, entropy_gradient: bool = False) -> list[torch.Tensor]:
        logits, targets = self.table[batch.input_ids[:, :-1]], batch.input_ids[:, 1:]
        found = token_logprobs(logits, targets, 1.0, entropy_gradient=entropy_gradient)
        return [torch.nn.functional.pad(values, (1, 0)) for values in found]


def pool(engine: BigramEngine, *, version: int, shift: float = 0.0) -> list[Sample]:
    """Two groups of two rows; log-probs are the engine's own, off by `shift`."""
    rng, found = np.random.default_rng(2), []
    for index in range(4):
        tokens = rng.integers(0, VOCABULARY, 5)
        trained = np.arange(5) > 0
        sample = Sample(
            group_id=f"g{index // 2}",
            index=index % 2,
            token_ids=tokens,
            loss_mask=trained,
            advantages=np.where(trained, np.float32(1 - index % 2 * 2), np.float32(0)),
            rollout_logprobs=np.zeros(5, dtype=np.float32),
            versions=np.where(trained, version, NO_VERSION),
            turn_lengths=np.where(trained, 4, 0),
            turn_index=np.where(trained, 0, NO_TURN),
            value_mask=np.zeros(5, dtype=np.bool_),
            value_targets=np.zeros(5, dtype=np.float32),
        )
        logprobs = engine.predict(collate([sample]))[0][0].detach().numpy() + np.float32(shift)
        found.append(replace(sample, rollout_logprobs=np.where(trained, logprobs, np.float32(0))))
    return found


def stepper(engine: BigramEngine, **sections: Any) -> Stepper:
    recipe = Recipe(
        learner=LearnerConfig(minibatches=2),
        credit=CRBCConfig(),
        filter=FilterConfig(),
        objective=Objective(**sections),
        critic=CriticConfig(),
        temperature=1.0,
    )
    return Stepper(engine, recipe)


def two_steps(proximal: str, *, version: int) -> tuple[list[StepMetrics], BigramEngine]:
    engine = BigramEngine()
    made = stepper(engine, offpolicy=OffPolicyConfig(proximal=proximal))
    minibatches = made.minibatches(pool(engine, version=version), steps=2, statistics=None)
    return made.policy_steps(minibatches, VERSION, {})[0], engine


def test_on_tokens_of_the_current_version_the_approximation_is_exact_and_saves_the_pass():
    recomputed, costly = two_steps("recompute", version=VERSION)
    approximated, cheap = two_steps("approximate", version=VERSION)
    assert (costly.extra_passes, cheap.extra_passes) == (1, 0), (
        "the first step's own pass says what its minibatch needs"
    )
    assert [step.loss for step in approximated] == pytest.approx([step.loss for step in recomputed], abs=1e-6)
    assert approximated[1].sums["ratio"] == pytest.approx(recomputed[1].sums["ratio"], rel=1e-6)
    assert abs(recomputed[1].sums["approx_kl"]) > 1e-6, "the first step moved the policy of the second"


def test_on_older_tokens_the_second_of_two_steps_is_half_a_version_ahead():
    first, second = two_steps("approximate", version=VERSION - 1)[0]
    assert first.sums["approx_kl"] == 0
    exact = two_steps("recompute", version=VERSION - 1)[0][1].sums
    # rollout to current was moved by the first step alone; alpha = 1 / (1 + 1/2) leaves a third of it to the ratio
    whole, tokens = exact["approx_kl"], exact["tokens"]
    assert second.sums["approx_kl"] / tokens == pytest.approx(whole / 9 / tokens, rel=0.2)


def test_parity_is_checked_before_the_first_step_although_nothing_was_recomputed():
    engine = BigramEngine()
    before = engine.table.detach().clone()
    made = stepper(engine, offpolicy=OffPolicyConfig(proximal="approximate"))
    minibatches = made.minibatches(pool(engine, version=VERSION, shift=0.1), steps=2, statistics=None)
    with pytest.raises(ParityError, match=r"differ by 0\.1 nats"):
        made.policy_steps(minibatches, VERSION, {})
    assert torch.equal(engine.table, before)


@pytest.mark.parametrize("number", [0, 1])
def test_parity_is_checked_on_every_minibatch_before_the_first_step(number: int):
    engine = BigramEngine()
    before = engine.table.detach().clone()
    made = stepper(engine)
    minibatches = made.minibatches(pool(engine, version=VERSION), steps=2, statistics=None)
    for batch in minibatches[number].micro_batches:
        batch.rollout_logprobs[batch.loss_mask] += 0.1
    with pytest.raises(ParityError, match=r"differ by 0\.\d+ nats"):
        made.policy_steps(minibatches, VERSION, {})
    assert torch.equal(engine.table, before)


def test_parity_is_told_of_all_minibatches():
    engine = BigramEngine()
    made = stepper(engine)
    minibatches = made.minibatches(pool(engine, version=VERSION, shift=0.0005), steps=2, statistics=None)
    _, parity = made.policy_steps(minibatches, VERSION, {})
    assert parity["tokens_current"] == 16
    assert parity["parity_current"] == pytest.approx(16 * 0.0005, rel=1e-3)


def probe(engine: BigramEngine, *, version: int, shift: float) -> list[Turn]:
    """Two turns of four tokens, which an engine that is off by `shift` sampled for no group."""
    turns = []
    for sample in pool(engine, version=version, shift=shift)[:2]:
        ids, logprobs = sample.token_ids.tolist(), sample.rollout_logprobs.tolist()
        turns.append(
            Turn(
                prompt_ids=ids[:1],
                response_ids=ids[1:],
                logprobs=logprobs[1:],
                anchor="",
                next_anchor="",
                versions=[VersionSpan(version=version, start=0, end=4)],
                action=None,
                reward=0.0,
            )
        )
    return turns


@pytest.mark.parametrize("proximal", ["recompute", "approximate"])
def test_where_groups_are_older_only_the_probe_tells_of_parity_and_it_is_asked_once_the_first_gradient_is_there(
    proximal: str,
):
    engine, passes_before = BigramEngine(), []
    made = stepper(engine, offpolicy=OffPolicyConfig(proximal=proximal))
    minibatches = made.minibatches(pool(engine, version=VERSION - 1, shift=0.1), steps=2, statistics=None)

    def asked() -> list[Turn]:
        assert engine.table.grad is not None
        passes_before.append(engine.extra_passes)
        return probe(engine, version=VERSION, shift=2e-4)

    steps, parity = made.policy_steps(minibatches, VERSION, {}, probe=asked)
    assert len(steps) == 2
    assert passes_before == [1 if proximal == "recompute" else 0]
    assert (parity["tokens_current"], parity["parity_current"]) == (8, pytest.approx(8 * 2e-4, rel=1e-2))


def test_a_probe_that_is_off_cancels_the_step_and_one_of_another_version_says_nothing():
    engine = BigramEngine()
    before = engine.table.detach().clone()
    made = stepper(engine)
    minibatches = made.minibatches(pool(engine, version=VERSION - 1), steps=2, statistics=None)
    with pytest.raises(ParityError, match=r"differ by 0\.1 nats per token over 8 tokens of version 4"):
        made.policy_steps(minibatches, VERSION, {}, probe=lambda: probe(engine, version=VERSION, shift=0.1))
    assert torch.equal(engine.table, before)
    steps, parity = made.policy_steps(
        minibatches, VERSION, {}, probe=lambda: probe(engine, version=VERSION - 1, shift=0.1)
    )
    assert (len(steps), parity["tokens_current"]) == (2, 0)


def test_the_band_starts_with_the_second_update():
    engine = BigramEngine()
    made = stepper(engine, entropy=EntropyConfig(coef=0.01, band=(0.999, 1.001)))
    outside = []
    for version in (VERSION, VERSION + 1):
        minibatches = made.minibatches(pool(engine, version=version), steps=1, statistics=None)
        (step,), _ = made.policy_steps(minibatches, version, {})
        outside.append(step.sums["entropy_outside"] / step.sums["tokens"])
    assert outside[0] == 0
    assert outside[1] > 0.5
