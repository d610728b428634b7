"""Credit strategies of a user: one that keeps the rules, and one for each way of breaking them."""

# ruff: noqa: ARG002

from dataclasses import replace
from typing import ClassVar

import numpy as np

from milepost.learner.credit.assignment import Credit, CreditGroup
from milepost.learner.credit.baseline import trajectory_advantages

HERE = "tests.learner.credit.strategies.own_strategies"
NOT_A_CLASS = object()


class LateTurns:
    """Later turns get more of what their trajectory won over its group."""

    requires: ClassVar[frozenset[str]] = frozenset()
    scaling = "unit_rms"

    def __init__(self, *, fade: float = 0.5) -> None:
        self.fade = fade

    def assign(self, group: CreditGroup) -> Credit:
        traj_adv = trajectory_advantages(group.returns, baseline="dr_grpo")
        turns = [len(trajectory.turns) for trajectory in group.trajectories]
        step_adv = tuple(a * self.fade ** np.arange(n)[::-1] for a, n in zip(traj_adv, turns, strict=True))
        compared = tuple(np.zeros(n, dtype=np.int8) for n in turns)
        return Credit(traj_adv, step_adv, compared, step_adv, state_value={}, diagnostics={"fade": self.fade})


class NoAssign:
    pass


class NoScaling:
    requires: ClassVar[frozenset[str]] = frozenset()

    def assign(self, group: CreditGroup) -> Credit:
        return LateTurns().assign(group)


class WrongScaling(LateTurns):
    scaling = "std"


class WrongNeed(LateTurns):
    requires: ClassVar[frozenset[str]] = frozenset({"crystal ball"})


class NeedsNothingIterable(LateTurns):
    requires: ClassVar[None] = None  # type: ignore[assignment]


class RaisesInConstructor(LateTurns):
    def __init__(self) -> None:
        raise KeyError("no such table")


class Raises(LateTurns):
    def assign(self, group: CreditGroup) -> Credit:
        raise ZeroDivisionError("nothing to divide by")


class ReadsWhatItDoesNotRequire(LateTurns):
    def assign(self, group: CreditGroup) -> Credit:
        sum(turn.value for t in group.trajectories for turn in t.turns)  # type: ignore[misc]
        return super().assign(group)


class ReadsProgress(LateTurns):
    requires: ClassVar[frozenset[str]] = frozenset({"progress"})

    def assign(self, group: CreditGroup) -> Credit:
        assert all(turn.progress is not None for t in group.trajectories for turn in t.turns)
        return super().assign(group)


class NoCredit(LateTurns):
    def assign(self, group: CreditGroup) -> list[float]:  # type: ignore[override]
        return [0.0] * len(group.trajectories)


class TooFewTrajectories(LateTurns):
    def assign(self, group: CreditGroup) -> Credit:
        credit = super().assign(group)
        return replace(credit, total=credit.total[1:])


class OneNumberPerTrajectory(LateTurns):
    def assign(self, group: CreditGroup) -> Credit:
        credit = super().assign(group)
        return replace(credit, total=tuple(credit.traj_adv))


class NoSteps(LateTurns):
    def assign(self, group: CreditGroup) -> Credit:
        return replace(super().assign(group), step_adv=None)


class DividesByNothing(LateTurns):
    """NaN where all returns are equal."""

    def assign(self, group: CreditGroup) -> Credit:
        credit = super().assign(group)
        with np.errstate(all="ignore"):
            return replace(credit, total=tuple(x / np.std(credit.traj_adv) for x in credit.total))


class CoversTwice(LateTurns):
    def assign(self, group: CreditGroup) -> Credit:
        credit = super().assign(group)
        return replace(credit, coverage=tuple(x + 2 for x in credit.coverage))


class WrongTokens(LateTurns):
    scaling = "whiten_tokens"

    def assign(self, group: CreditGroup) -> Credit:
        credit = super().assign(group)
        return replace(credit, token_total=tuple(tuple(np.zeros(7) for _ in x) for x in credit.total))


class NoTokens(LateTurns):
    scaling = "whiten_tokens"


class CriticWithoutTargets(LateTurns):
    requires: ClassVar[frozenset[str]] = frozenset({"critic"})


class ReadsACritic(LateTurns):
    """Its totals are not 0 where all trajectories are equal, and may be so."""

    requires: ClassVar[frozenset[str]] = frozenset({"critic"})

    def assign(self, group: CreditGroup) -> Credit:
        values = [np.array([turn.value for turn in t.turns]) for t in group.trajectories]
        targets = tuple(tuple(np.array([v]) for v in row) for row in values)
        return replace(super().assign(group), total=tuple(values), value_targets=targets)


class FirstComesFirst(LateTurns):
    """Depends on the order of the trajectories."""

    def assign(self, group: CreditGroup) -> Credit:
        credit = super().assign(group)
        return replace(credit, total=(credit.total[0] + 1, *credit.total[1:]))


class Random(LateTurns):
    def assign(self, group: CreditGroup) -> Credit:
        credit = super().assign(group)
        return replace(credit, total=tuple(x + np.random.default_rng().random() for x in credit.total))


class Remembers(LateTurns):
    """Another answer each time, as with a running mean."""

    calls = 0

    def assign(self, group: CreditGroup) -> Credit:
        self.calls += 1
        credit = super().assign(group)
        return replace(credit, total=tuple(x / self.calls for x in credit.total))


class InfiniteDiagnostics(LateTurns):
    def assign(self, group: CreditGroup) -> Credit:
        return replace(super().assign(group), diagnostics={"ratio": float("inf")})


class NoDict(LateTurns):
    def assign(self, group: CreditGroup) -> Credit:
        return replace(super().assign(group), state_value=[0.0])


class NotCentred(LateTurns):
    """Credits the return itself, also where there is nothing to compare it with."""

    def assign(self, group: CreditGroup) -> Credit:
        credit = super().assign(group)
        totals = tuple(np.full(len(t.turns), t.reward) for t in group.trajectories)
        return replace(credit, total=totals)


class FailsOnLongGroups(LateTurns):
    """Passes the trial; in training it meets a group that it cannot take."""

    def assign(self, group: CreditGroup) -> Credit:
        credit = super().assign(group)
        if len(group.trajectories) > 5:
            return replace(credit, total=tuple(x * np.nan for x in credit.total))
        return credit
