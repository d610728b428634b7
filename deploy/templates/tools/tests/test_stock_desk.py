"""Plays the environment without a model: python -m pytest -q."""

import random

from stock_desk import StockDesk

from milepost.envs.messages import AssistantMessage


def test_the_expert_looks_two_things_up_and_answers() -> None:
    desk = StockDesk()
    desk.reset(seed=0)
    for _ in range(2):
        _, reward, ended, _, info = desk.step(desk.demonstration(random.Random(0), 0.0))
        assert (reward, ended, info["action_valid"]) == (0.0, False, True)
    _, reward, ended, _, info = desk.step(desk.demonstration(random.Random(0), 0.0))
    assert (reward, ended, info["success"]) == (1.0, True, True)


def test_a_guess_ends_the_episode_without_a_reward() -> None:
    desk = StockDesk()
    desk.reset(seed=0)
    wrong = str(desk.pieces + 1)
    _, reward, ended, _, info = desk.step(AssistantMessage(content=wrong))
    assert (reward, ended, info["success"]) == (0.0, True, False)


def test_a_task_is_the_same_whenever_it_is_set_up() -> None:
    one, other = StockDesk(), StockDesk()
    assert one.reset(seed=7) == other.reset(seed=7)
    assert (one.thing, one.pieces) == (other.thing, other.pieces)
