"""What a learner rank's failure means for the run."""

from ray.exceptions import RayTaskError

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.pools.learners import _translated
from milepost.learner.credit.trial import StrategyError


def test_a_users_strategy_that_fails_in_training_ends_the_run_as_a_wrong_configuration() -> None:
    cause = StrategyError("assign raised KeyError: 3")
    found = _translated(RayTaskError("train", "Traceback ...", cause))
    assert isinstance(found, ConfigError)
    assert str(found) == "credit.path: assign raised KeyError: 3"
