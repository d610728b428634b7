from __future__ import annotations

import random

import pytest

from milepost.envs.answer import write_answer
from milepost.envs.bandit import CALM_NAMES, WILD_NAMES, TwoArmedBandit


def arms(env: TwoArmedBandit, seed: int) -> tuple[str, str]:
    """The calm arm and the wild one."""
    observation, _ = env.reset(seed=seed)
    calm = next(name for name in CALM_NAMES if name in observation)
    return calm, next(name for name in WILD_NAMES if name in observation)


def test_the_calm_arm_always_pays_a_tenth_and_is_no_success() -> None:
    env = TwoArmedBandit()
    for seed in range(20):
        calm, _ = arms(env, seed)
        _, reward, terminated, truncated, info = env.step(write_answer(calm))
        assert (reward, terminated, truncated, info["success"]) == (0.1, True, False, False)


def test_the_wild_arm_pays_one_in_a_quarter_of_the_pulls() -> None:
    env = TwoArmedBandit(max_steps=4000)
    _, wild = arms(env, 3)
    steps = [env.step(write_answer(wild)) for _ in range(4000)]
    rewards = [reward for _, reward, *_ in steps]
    assert set(rewards) == {0.0, 1.0}
    assert 0.22 < sum(rewards) / 4000 < 0.28  # four standard deviations
    assert steps[-1][4]["success"] is True


def test_success_needs_more_than_half_of_the_turns_on_the_better_arm() -> None:
    env = TwoArmedBandit(max_steps=2)
    _, wild = arms(env, 0)
    env.step(write_answer(wild))
    observation, reward, terminated, _, info = env.step("hm")
    assert (observation, reward, terminated) == ("No machine was pulled. Again?", 0.0, True)
    assert (info["action"], info["action_valid"], info["success"]) == (None, False, False)


def test_what_people_are_told_of_the_arms_is_nothing_to_learn_from() -> None:
    env = TwoArmedBandit(max_steps=2)
    env.reset(seed=0)
    assert "success_trains" not in env.step("hm")[4]
    assert env.step("hm")[4]["success_trains"] is False


def test_names_and_their_order_vary_with_the_seed() -> None:
    env = TwoArmedBandit()
    starts = {env.reset(seed=seed)[0] for seed in range(300)}
    anchors = {env.reset(seed=seed)[1]["anchor"] for seed in range(300)}
    assert len(anchors) == 36
    assert len(starts) == 72


def test_swapped_arms_keep_their_names_and_change_their_pay() -> None:
    env = TwoArmedBandit(swapped=True)
    calm, wild = arms(env, 0)
    assert env.step(write_answer(wild))[1] == 0.1
    env.reset(seed=0)
    assert env.step(write_answer(calm))[4]["success"] is True


def test_the_expert_pulls_the_better_arm() -> None:
    env = TwoArmedBandit()
    for seed in range(10):
        env.reset(seed=seed)
        assert env.step(env.demonstration(random.Random(seed), 0.0))[4]["success"] is True
    rng = random.Random(0)
    assert len({env.demonstration(rng, 1.0) for _ in range(20)}) == 2


def test_no_pulls_are_refused() -> None:
    with pytest.raises(ValueError, match="max_steps"):
        TwoArmedBandit(max_steps=0)
