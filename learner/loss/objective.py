"""What a step minimises: the policy loss with its corrections and the entropy terms, on one micro-batch."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from milepost.learner.batch.pack import MicroBatch
from milepost.learner.loss.entropy import EntropyConfig, entropy_loss, turn_sums
from milepost.learner.loss.loss import LossConfig, LossTerms, Policies, policy_loss
from milepost.learner.loss.offpolicy import OffPolicyConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The settings that make the loss. Raises ValueError where they contradict each other."""

    loss: LossConfig = field(default_factory=LossConfig)
    offpolicy: OffPolicyConfig = field(default_factory=OffPolicyConfig)
    entropy: EntropyConfig = field(default_factory=EntropyConfig)

    def __post_init__(self) -> None:
        if (complaint := contradiction(self.loss, self.offpolicy)) is not None:
            raise ValueError(complaint)


def contradiction(loss: LossConfig, offpolicy: OffPolicyConfig) -> str | None:
    """What cannot be together, with the way out; None if all is well.

    >>> contradiction(LossConfig(objective="sapo"), OffPolicyConfig(importance="none")) is None
    True
    """
    if loss.objective == "sapo" and offpolicy.importance != "none":
        return (
            f'loss.objective = "sapo" with offpolicy.importance = "{offpolicy.importance}": its gate is no part of a '
            'decoupled loss and leaves no room for a second weight; set offpolicy.importance = "none"'
        )
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Entropies:
    """Of the tokens of a micro-batch, `[B, L]` in nats."""

    current: Tensor
    """With a gradient where the objective has an entropy term."""
    usual: Tensor | None
    """The usual entropy of the token's turn; None where no band is set."""
    num_turns: int
    """One more than the largest turn index of the whole step, the same on all ranks."""


def objective_terms(
    batch: MicroBatch, policies: Policies, entropies: Entropies, *, objective: Objective, total: float
) -> LossTerms:
    """Loss and sums of one micro-batch; `total` is `denominator` of the whole step over all ranks.

    >>> import torch
    >>> from milepost.learner.batch.pack import collate
    >>> from milepost.learner.batch.sample import Sample
    >>> batch, zeros = collate([Sample.from_turn_index([-1, 0], advantages=[0.0, 1.0])]), torch.zeros(1, 2)
    >>> entropies = Entropies(current=zeros + 0.5, usual=None, num_turns=1)
    >>> objective = Objective(entropy=EntropyConfig(coef=0.5))
    >>> terms = objective_terms(batch, Policies(zeros, zeros), entropies, objective=objective, total=1.0)
    >>> terms.loss.item()  # -1 of the advantage, -0.5 * 0.5 of the entropy
    -1.25
    """
    terms = policy_loss(batch, policies, config=objective.loss, offpolicy=objective.offpolicy, total=total)
    sums = terms.sums | {"entropy": float(entropies.current.detach()[batch.loss_mask].double().sum())}
    if objective.entropy.coef == 0:
        return LossTerms(terms.loss, sums)
    bonus = entropy_loss(
        batch, entropies.current, entropies.usual, config=objective.entropy, loss=objective.loss, total=total
    )
    if objective.entropy.band is not None:
        sums |= bonus.sums | turn_sums(batch, entropies.current, entropies.num_turns)
    return LossTerms(terms.loss + bonus.loss, sums)
