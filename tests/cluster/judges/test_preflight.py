"""What a strategy reads and an environment does not tell is found before anything starts."""

import pytest

from milepost.cluster.base.exits import ConfigError
from milepost.cluster.preflight import check_world
from milepost.cluster.settings.config import RunConfig
from milepost.envs.scenarios import ScenarioConfig
from milepost.learner.credit.strategies.pbrs import PBRSConfig

COIN = ScenarioConfig(path="tests.coin_env:CoinEnv", train_size=4, heldout_size=2)
LAKE = ScenarioConfig(train_size=4, heldout_size=2)


def both(*envs: ScenarioConfig) -> tuple[ScenarioConfig, ...]:
    return tuple(env.model_copy(update={"name": f"env{number}"}) for number, env in enumerate(envs))


@pytest.mark.parametrize("broken", ["tests.broken_envs:RaisesInReset", "tests.broken_envs:NoSuchEnv"])
def test_every_environment_of_a_run_is_rehearsed(broken: str) -> None:
    assert len(check_world(RunConfig(env=both(LAKE, COIN))).envs) == 2
    with pytest.raises(ConfigError, match=broken):
        check_world(RunConfig(env=both(LAKE, ScenarioConfig(path=broken))))


def test_a_strategy_that_reads_progress_needs_an_environment_that_reports_it() -> None:
    reads_progress = PBRSConfig(potential="progress")
    with pytest.raises(ConfigError, match=r"reads info\['progress'\].*CoinEnv does not report.*potential = .graph."):
        check_world(RunConfig(env=COIN, credit=reads_progress))
    assert check_world(RunConfig(env=LAKE, credit=reads_progress))
    with pytest.raises(ConfigError, match="CoinEnv does not report"):
        check_world(RunConfig(env=both(LAKE, COIN), credit=reads_progress))
    assert check_world(RunConfig(env=COIN, credit=PBRSConfig()))
