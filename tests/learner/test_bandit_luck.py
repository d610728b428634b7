"""The shipped bandit, its payouts and a policy of one number: which arm credit teaches, with luck shared and own."""

import math
import random

import numpy as np
import pytest

from milepost.envs import chance
from milepost.envs.bandit import TwoArmedBandit
from milepost.envs.contract import observe_reset, observe_step
from milepost.envs.types import Group, Task, Trajectory, Turn, VersionSpan
from milepost.learner.credit.assignment import from_group
from milepost.learner.credit.filter import FilterConfig, keep_groups, weighted
from milepost.learner.credit.scaling import scaled
from milepost.learner.credit.strategies.registry import build, settings

UPDATES, GROUPS, SIZE = 30, 8, 8
"""What deploy/configs/bandit.toml spends."""


def pull(task: Task, group: str, index: int, *, better: bool, shares_luck: bool) -> Trajectory:
    env = TwoArmedBandit()
    later = chance.episode_seed(task.seed, group, 0 if shares_luck else index)
    start = observe_reset(chance.reset(env, seed=task.seed, later=later))
    answer = f"<answer>{next(arm for arm in env._actions() if (arm == env._wild) == better)}</answer>"
    step = observe_step(env.step(answer), answer)
    turn = Turn(
        prompt_ids=[1],
        response_ids=[1],
        logprobs=[0.0],
        versions=[VersionSpan(version=0, start=0, end=1)],
        anchor=start.anchor,
        next_anchor=step.anchor,
        action=step.action,
        reward=step.reward,
    )
    outcome = "success" if step.success else "failure"
    return Trajectory(
        task=task, group_id=group, index=index, turns=[turn], outcome=outcome, success_reported=step.success_trains
    )


def better_arm_after_training(strategy: str, seed: int, *, shares_luck: bool = False) -> float:
    """The probability of the better arm, which begins at one half, after the bandit's budget."""
    rng, credit = random.Random(seed), build(settings(strategy=strategy))
    logit = 0.0
    for update in range(UPDATES):
        p = 1 / (1 + math.exp(-logit))
        groups, chosen = [], []
        for number in range(update * GROUPS, (update + 1) * GROUPS):
            task, name = Task(env="bandit", seed=1000 * seed + number, split="train"), f"g{number}"
            arms = [rng.random() < p for _ in range(SIZE)]
            pulls = [pull(task, name, i, better=arm, shares_luck=shares_luck) for i, arm in enumerate(arms)]
            groups.append(from_group(Group(group_id=name, task=task, trajectories=pulls)))
            chosen.append(arms)
        credits = [credit.assign(group) for group in groups]
        verdicts = keep_groups(groups, credits, FilterConfig())
        kept = [k for k, verdict in enumerate(verdicts) if verdict.keep]
        counts = [[np.ones(1)] * SIZE for _ in kept]
        on_one_scale = scaled([credits[k] for k in kept], counts, credit.scaling) if kept else []
        for k, found in zip(kept, weighted(on_one_scale, [verdicts[k] for k in kept]), strict=True):
            for better, advantage in zip(chosen[k], found.total, strict=True):
                logit += float(advantage[0]) * (better - p) / (GROUPS * SIZE)
    return 1 / (1 + math.exp(-logit))


@pytest.mark.parametrize("strategy", ["starpo", "gigpo", "crbc"])
def test_with_luck_of_its_own_each_episode_teaches_the_better_arm_and_with_shared_luck_the_worse(strategy: str) -> None:
    assert all(better_arm_after_training(strategy, seed) > 0.8 for seed in range(3))
    assert better_arm_after_training(strategy, 0, shares_luck=True) < 0.3
