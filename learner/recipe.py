"""What the learner makes of a group: the sections of the configuration that an update reads, together."""

from __future__ import annotations

from dataclasses import dataclass

from milepost.learner.config import LearnerConfig
from milepost.learner.credit.assignment import Need, PastTransition
from milepost.learner.credit.filter import FilterConfig
from milepost.learner.credit.filter import needs as filter_needs
from milepost.learner.credit.modulators import needs as credit_needs
from milepost.learner.credit.strategies.registry import CreditConfig, build
from milepost.learner.loss.critic import CriticConfig
from milepost.learner.loss.objective import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The same on every rank of a run."""

    learner: LearnerConfig
    credit: CreditConfig
    filter: FilterConfig
    objective: Objective
    critic: CriticConfig
    """Read only where the strategy reads a critic."""
    temperature: float
    """Sampling temperature of rollouts: log-probs are of that distribution."""

    @property
    def needs(self) -> frozenset[Need]:
        """What credit and filter read beyond states, actions and rewards."""
        return credit_needs(build(self.credit), self.credit.modulators) | filter_needs(self.filter)

    @property
    def trained_critic(self) -> CriticConfig | None:
        """The critic that a rank holds and trains; None where nobody reads one."""
        return self.critic if "critic" in self.needs else None


Histories = tuple[tuple[PastTransition, ...], ...]
"""What earlier groups of each group's task met, in the order of the groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateOptions:
    """What the driver wants different in one update; the same on every rank."""

    histories: Histories | None = None
    """None where the credit strategy keeps none."""
    filter: FilterConfig | None = None
    """Instead of the recipe's."""
    lr_factor: float = 1.0
    """Factor of the learning rate."""
