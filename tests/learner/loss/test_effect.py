"""Keys that change nothing are named, and what is said of them is what the loss does."""

import pytest
import torch

from milepost.learner.batch.pack import collate
from milepost.learner.batch.sample import Sample
from milepost.learner.loss.effect import without_effect
from milepost.learner.loss.entropy import EntropyConfig
from milepost.learner.loss.loss import LossConfig, Policies, policy_loss
from milepost.learner.loss.objective import Objective
from milepost.learner.loss.offpolicy import OffPolicyConfig

UNWEIGHTED = OffPolicyConfig(importance="none")
SURROGATES = (
    LossConfig(objective="cispo"),
    LossConfig(ratio="turn", clip_low=3e-4, clip_high=4e-4),
    LossConfig(clip_low=0.1),
    LossConfig(clip_high=0.5),
    LossConfig(dual_clip=2.0),
    LossConfig(objective="sapo", tau_positive=2.0, tau_negative=3.0),
)


def gradient(config: LossConfig, ratio: float) -> list[float]:
    """Of the log-probs of three tokens, two with a positive advantage."""
    batch = collate([Sample.from_turn_index([-1, 0, 0, 1], advantages=[0.0, 1.0, 1.0, -2.0])])
    current = torch.full((1, 4), -1.0).requires_grad_()
    policies = Policies(current, current.detach() - torch.tensor(ratio).log())
    policy_loss(batch, policies, config=config, offpolicy=UNWEIGHTED, total=3.0).loss.backward()
    assert current.grad is not None
    return [round(x, 5) for x in current.grad[0].tolist()]


@pytest.mark.parametrize("config", SURROGATES, ids=lambda c: f"{c.objective}-{c.ratio}")
def test_a_surrogate_changes_the_gradient_of_a_later_step_only(config: LossConfig) -> None:
    plain = LossConfig()
    assert gradient(config, 1.0) == gradient(plain, 1.0)
    assert any(gradient(config, ratio) != gradient(plain, ratio) for ratio in (0.85, 1.4, 2.5))
    objective = Objective(loss=config, offpolicy=UNWEIGHTED)
    refused = without_effect(objective, minibatches=1)
    assert refused is not None
    assert "learner.minibatches to 2 or more" in refused
    assert without_effect(objective, minibatches=2) is None


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (Objective(offpolicy=OffPolicyConfig(importance="none", importance_cap=3.0)), "offpolicy.importance_cap = 3.0"),
        (Objective(offpolicy=OffPolicyConfig(rejection_level="sequence")), "with no offpolicy.rejection_band"),
        (Objective(entropy=EntropyConfig(coef=1e-3, memory=0.5)), "entropy.memory = 0.5 has no effect with no entropy"),
        (Objective(loss=LossConfig(objective="cispo", dual_clip=2.0)), "or leave dual_clip out"),
        (Objective(loss=LossConfig(objective="sapo", clip_low=0.1), offpolicy=UNWEIGHTED), 'set objective = "clip"'),
    ],
)
def test_a_key_that_another_one_switches_off_is_named_with_the_way_out(objective: Objective, said: str) -> None:
    refused = without_effect(objective, minibatches=2)
    assert refused is not None
    assert said in refused


def test_defaults_and_weights_of_the_rollout_policy_are_never_refused() -> None:
    assert without_effect(Objective(), minibatches=1) is None
    weights = OffPolicyConfig(ratio_band=(0.5, 2.0), rejection_band=(0.5, 2.0), rejection_level="sequence")
    assert without_effect(Objective(offpolicy=weights), minibatches=1) is None
