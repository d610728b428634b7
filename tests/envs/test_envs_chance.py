"""An episode's start comes from its task, its luck from its own name."""

import random
from typing import Any

import gymnasium
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from milepost.envs import chance
from milepost.envs.bandit import TwoArmedBandit
from milepost.envs.frozen_lake import FrozenLakeText
from milepost.envs.key_door import KeyDoorText
from tests.broken_envs import CountingEnv

names = st.tuples(st.integers(0, 2**62), st.text(max_size=9), st.integers(0, 999))


@given(one=names, other=names)
def test_an_episodes_seed_is_63_bits_and_its_own(one: Any, other: Any) -> None:
    assert 0 <= chance.episode_seed(*one) < 2**63
    assert (chance.episode_seed(*one) == chance.episode_seed(*other)) == (one == other)


def test_an_episodes_seed_is_the_same_in_every_process_and_version() -> None:
    assert chance.episode_seed(7, "g00000003", 5) == 4510438660619991166  # printf 7/g00000003/5 | b2sum -l 64, halved


def starts_and_walks(env: Any, answers: list[str], later: int) -> tuple[Any, list[Any]]:
    start = chance.reset(env, seed=3, later=later)
    walk: list[Any] = []
    for answer in answers:
        walk.append(env.step(answer))
        if walk[-1][2] or walk[-1][3]:
            break
    return start, walk


def test_the_shipped_environments_start_alike_and_go_on_by_the_episodes_seed() -> None:
    slippery = FrozenLakeText(size=8, frozen_share=1.0, slippery=True, max_steps=30)
    bandit = TwoArmedBandit(max_steps=30)
    chance.reset(bandit, seed=3, later=0)
    wild = f"<answer>{bandit._wild}</answer>"
    for env, answers in ((slippery, ["<answer>Down</answer>"] * 30), (bandit, [wild] * 30)):
        one, same, other = (starts_and_walks(env, answers, later) for later in (1, 1, 2))
        assert one == same
        assert one[0] == other[0]
        assert one[1] != other[1]
    door = KeyDoorText()
    assert starts_and_walks(door, ["up"] * 5, 1) == starts_and_walks(door, ["up"] * 5, 2)


def test_a_map_does_not_depend_on_the_episodes_seed_nor_on_whether_there_is_one() -> None:
    lake = FrozenLakeText()
    assert lake.reset(seed=4) == chance.reset(lake, seed=4, later=9)


class TakesNoOptions(CountingEnv):
    def reset(self, seed: int | None = None) -> Any:  # type: ignore[override]
        return super().reset(seed=seed)


class KeepsItsOptions(CountingEnv):
    def reset(self, **arguments: Any) -> Any:
        self.options, self.dice = arguments["options"], random.Random(arguments["options"]["episode_seed"])
        return super().reset(**arguments)


class HasItsOwnGenerator(CountingEnv):
    @property
    def np_random(self) -> Any:
        return np.random.default_rng(0)


def test_the_episodes_seed_is_an_option_where_reset_takes_options() -> None:
    env = KeepsItsOptions()
    chance.reset(env, seed=0, later=11)
    assert env.options == {"episode_seed": 11}
    assert chance.reset(TakesNoOptions(), seed=0, later=11) == (
        "0",
        {"anchor": "0", "admissible_actions": ["up", "stay"]},
    )
    assert chance.reset(HasItsOwnGenerator(), seed=0, later=11)


def test_the_generator_of_a_wrapped_environment_is_replaced_too() -> None:
    inner = CountingEnv()
    chance.reset(gymnasium.Wrapper(inner), seed=0, later=11)
    assert inner.np_random.random() == np.random.default_rng(11).random()
