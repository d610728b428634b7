"""A whole update of one learner rank with a user's own credit strategy, on a model of one table."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch

from milepost.envs.types import Group, Task, Trajectory, Turn, VersionSpan
from milepost.learner.config import LearnerConfig
from milepost.learner.credit.filter import FilterConfig
from milepost.learner.credit.strategies.registry import settings
from milepost.learner.credit.trial import StrategyError
from milepost.learner.loop import LearnerRank
from milepost.learner.loss.critic import CriticConfig
from milepost.learner.loss.objective import Objective
from milepost.learner.recipe import Recipe
from tests.learner.credit.strategies.own_strategies import HERE
from tests.learner.test_proximal_steps import VERSION, VOCABULARY, BigramEngine

TASK = Task(env="x:Y", seed=0, split="train")


class LoneRank(BigramEngine):
    def all_equal(self, _: int) -> bool:
        return True

    def all_sum_array(self, values: Any) -> Any:
        return values


def turn(engine: LoneRank, token: int, *, place: int, reward: float) -> Turn:
    """Prompt [0], response [token], with the engine's own log-prob."""
    logprob = float(torch.log_softmax(engine.table.detach()[0], dim=0)[token])
    return Turn(
        prompt_ids=[0],
        response_ids=[token],
        logprobs=[logprob],
        versions=[VersionSpan(version=VERSION, start=0, end=1)],
        anchor=str(place),
        next_anchor=str(place + 1),
        action=str(token),
        reward=reward,
    )


def group(engine: LoneRank, *, size: int) -> Group:
    """Every second trajectory wins, with token 1 and then 2; the others lose with 3 and then 4."""
    trajectories = [
        Trajectory(
            task=TASK,
            group_id="g",
            index=i,
            turns=[
                turn(engine, 1 + 2 * (i % 2), place=0, reward=0.0),
                turn(engine, 2 + 2 * (i % 2), place=1, reward=float(i % 2 == 0)),
            ],
            outcome="failure" if i % 2 else "success",
        )
        for i in range(size)
    ]
    return Group(group_id="g", task=TASK, trajectories=trajectories)


def rank(engine: LoneRank, name: str, **options: float) -> LearnerRank:
    return LearnerRank(
        engine,  # type: ignore[arg-type]
        Recipe(
            learner=LearnerConfig(),
            credit=settings(path=f"{HERE}:{name}", options=options),
            filter=FilterConfig(),
            objective=Objective(),
            critic=CriticConfig(),
            temperature=1.0,
        ),
    )


def test_an_update_follows_the_credit_of_a_users_own_strategy() -> None:
    engine = LoneRank()
    before = torch.softmax(engine.table.detach()[0], dim=0)
    report = rank(engine, "LateTurns", fade=0.0).train([group(engine, size=4)], VERSION)
    after = torch.softmax(engine.table.detach()[0], dim=0)
    assert len(report.losses) == 1
    # With fade 0 only last turns earn anything: token 2 won, token 4 lost; of the first turns, 1 and 3, none is told.
    assert after[2] / before[2] > 1 > after[4] / before[4]
    assert float(after[1] / before[1]) == pytest.approx(float(after[3] / before[3]), rel=1e-5)
    assert VOCABULARY > 4


def test_a_strategy_that_fails_in_training_ends_the_update_with_its_reason() -> None:
    engine = LoneRank()
    table = hashlib.sha256(engine.table.detach().numpy().tobytes()).hexdigest()
    with pytest.raises(StrategyError, match="total holds something other than finite numbers"):
        rank(engine, "FailsOnLongGroups").train([group(engine, size=8)], VERSION)
    assert hashlib.sha256(engine.table.detach().numpy().tobytes()).hexdigest() == table
    assert np.all(np.isfinite(engine.table.detach().numpy()))


def test_an_update_tells_the_credit_of_every_turn_and_the_advantage_that_it_trained_on() -> None:
    engine = LoneRank()
    groups = [group(engine, size=4), group(engine, size=1)]
    judged, dropped = rank(engine, "LateTurns", fade=0.0).train(groups, VERSION).credits
    assert [episode.turns for episode in judged] == [[0.0, 0.5], [0.0, -0.5]] * 2
    # Half of the turns have 0.5 in magnitude and half 0: their root mean square is 0.5 / sqrt(2).
    assert [episode.advantages for episode in judged] == [pytest.approx([0.0, s * 2**0.5]) for s in (1, -1)] * 2
    assert [(episode.turns, episode.advantages) for episode in dropped] == [([0.0, 0.0], None)]
