"""What the trial of a user's own strategy refuses, and what it lets pass."""

import pytest

from milepost.learner.credit.strategies.custom import Custom, CustomConfig
from milepost.learner.credit.strategies.registry import SETTINGS, build, settings
from milepost.learner.credit.trial import StrategyError, trial
from tests.learner.credit.strategies.own_strategies import HERE


def own(name: str, **options: float) -> Custom:
    return Custom(CustomConfig(path=f"{HERE}:{name}", options=options))


@pytest.mark.parametrize("name", ["LateTurns", "ReadsProgress", "ReadsACritic", "FailsOnLongGroups"])
def test_a_strategy_that_keeps_the_rules_passes_without_a_word(name: str) -> None:
    assert trial(own(name)) == []


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - {"custom"}))
def test_the_strategies_that_are_delivered_pass(name: str) -> None:
    # Two of them credit a turn by what is still to come: it differs along a way that all went.
    assert bool(trial(build(settings(strategy=name)))) == (name in ("g2po", "pbrs"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("WrongScaling", "scaling is 'std'; it must be one of unit_rms, "),
        ("WrongNeed", "requires names 'crystal ball'; known: critic, "),
        ("Raises", "assign raised ZeroDivisionError: nothing to divide by"),
        ("ReadsWhatItDoesNotRequire", "assign raised TypeError"),
        ("NoCredit", "assign returned list, not a Credit"),
        ("TooFewTrajectories", r"total has shapes \[\(4,.*, expected arrays of \[\(3,\), \(4,\), \(3,\), \(1,\)\]"),
        ("OneNumberPerTrajectory", "total has shapes"),
        ("NoSteps", "step_adv is a NoneType, not a tuple of arrays"),
        ("DividesByNothing", "total holds something other than finite numbers"),
        ("CoversTwice", "coverage holds something other than 0 and 1"),
        ("WrongTokens", "token_total has shapes"),
        ("NoTokens", "scaling is 'whiten_tokens', but token_total is None"),
        ("CriticWithoutTargets", "value_targets is None: the critic would learn nothing"),
        ("FirstComesFirst", "depends on the order of the trajectories"),
        ("Random", "another credit the second time"),
        ("Remembers", "another credit the second time"),
        ("InfiniteDiagnostics", "diagnostics holds something other than finite numbers"),
        ("NoDict", "state_value is not a dict"),
    ],
)
def test_a_strategy_that_breaks_a_rule_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(StrategyError, match=reason):
        trial(own(name))


def test_credit_without_a_comparison_is_a_warning() -> None:
    (warning,) = trial(own("NotCentred"))
    assert "trajectories that are all equal get credit other than 0" in warning
