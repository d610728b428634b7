"""What a learner rank's failure means for the run."""

from types import SimpleNamespace

import pytest
from ray.exceptions import RayTaskError

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.base.restarts import RestartConfig
from milepost.cluster.pools import learners
from milepost.cluster.pools.learners import LearnerPool, _translated
from milepost.learner.credit.trial import StrategyError


def test_a_users_strategy_that_fails_in_training_ends_the_run_as_a_wrong_configuration() -> None:
    cause = StrategyError("assign raised KeyError: 3")
    found = _translated(RayTaskError("train", "Traceback ...", cause))
    assert isinstance(found, ConfigError)
    assert str(found) == "credit.path: assign raised KeyError: 3"


@pytest.mark.parametrize(("transfer", "is_refused"), [("file", True), ("auto", False), ("object_store", False)])
def test_weights_by_file_are_refused_where_rank_0_is_on_another_host_than_the_driver(
    monkeypatch: pytest.MonkeyPatch, transfer: str, is_refused: bool
) -> None:
    monkeypatch.setattr(learners, "alive_hosts", lambda: [{}, {}])
    monkeypatch.setattr(learners.ray.util, "get_node_ip_address", lambda: "10.0.0.1")
    pool = LearnerPool(SimpleNamespace(transfer=transfer, restarts=RestartConfig()), None)
    pool._require_file_in_reach("10.0.0.1")
    if not is_refused:
        pool._require_file_in_reach("10.0.0.2")
        return
    with pytest.raises(ConfigError, match=r"the learner is on 10\.0\.0\.2, the driver on 10\.0\.0\.1"):
        pool._require_file_in_reach("10.0.0.2")
