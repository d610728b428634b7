"""Several environments in one run: whose turn it is, and which tasks each of them has."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.envs.scenarios import MAX_ENVIRONMENTS, ScenarioConfig, ScenarioError, ScenarioSet, ShareOrder
from milepost.envs.types import Split

SPLITS: tuple[Split, ...] = get_args(Split)
SHARES = st.lists(st.floats(0.01, 100), min_size=2, max_size=8)


def lake(name: str, **changes: object) -> ScenarioConfig:
    return ScenarioConfig.model_validate({"name": name, "train_size": 5, "heldout_size": 3, "ood_size": 2} | changes)


@given(shares=SHARES, turns=st.integers(1, 400))
def test_after_every_turn_each_has_its_share_to_within_less_than_one_turn(shares: list[float], turns: int) -> None:
    order = ShareOrder(shares)
    had = Counter[int]()
    for place in range(turns):
        whose, before = order.at(place)
        assert before == had[whose]
        had[whose] += 1
        lags = [abs((place + 1) * share / sum(shares) - had[k]) for k, share in enumerate(shares)]
        assert max(lags) <= 1 - 1 / (2 * len(shares) - 2) + 1e-9


def test_three_to_one_is_three_and_one_of_every_four() -> None:
    order = ShareOrder([3, 1])
    assert [order.at(place)[0] for place in range(8)] == [0, 0, 1, 0, 0, 0, 1, 0]
    assert order.at(7) == (0, 5)
    assert order.at(2) == (1, 0)  # any place can be asked for again


@given(shares=SHARES, places=st.lists(st.integers(0, 300), min_size=1, max_size=5))
def test_the_order_is_the_same_in_every_process(shares: list[float], places: list[int]) -> None:
    once, again = ShareOrder(shares), ShareOrder(shares)
    again.at(300)
    assert [once.at(place) for place in places] == [again.at(place) for place in places]


@given(shares=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), seed=st.integers(0, 5))
def test_beside_others_an_environment_plays_its_own_tasks_in_its_own_order(
    shares: tuple[float, float], seed: int
) -> None:
    first, second = lake("first", share=shares[0], seed=seed), lake("second", share=shares[1], train_size=3)
    both, other = ScenarioSet([first, second]), ScenarioSet([first, lake("other", share=shares[1], train_size=7)])
    played = [both.schedule(place) for place in range(60)]
    for env in both.envs:
        mine = [task for task in played if task.env_name == env.config.name]
        assert mine == [env.schedule(place) for place in range(len(mine))]
        epoch = mine[: env.config.train_size]
        assert {task.seed for task in epoch} <= {task.seed for task in env.tasks("train")}
        assert len({task.seed for task in epoch}) == len(epoch)
    assert other.envs[0].tasks("heldout") == both.envs[0].tasks("heldout")
    assert [other.envs[0].schedule(k) for k in range(9)] == [both.envs[0].schedule(k) for k in range(9)]


def test_no_two_splits_of_any_two_environments_share_a_seed() -> None:
    sets = [ScenarioSet([lake(f"lake-{k}", seed=seed) for k in range(MAX_ENVIRONMENTS)]) for seed in (0, 1)]
    seeds = [task.seed for tasks in sets for split in SPLITS for task in tasks.tasks(split)]
    assert len(set(seeds)) == len(seeds) == 2 * MAX_ENVIRONMENTS * (5 + 3 + 2)


def test_a_task_knows_the_name_of_its_environment_and_a_single_one_may_have_none() -> None:
    assert {task.env_name for task in ScenarioSet([lake("a"), lake("b")]).tasks("heldout")} == {"a", "b"}
    assert ScenarioSet(ScenarioConfig()).schedule(0).env_name == ""


def test_tasks_by_share_take_those_of_each_environment_in_order_and_again() -> None:
    both = ScenarioSet([lake("a", share=3), lake("b", train_size=1)])
    a, b = (env.tasks("train") for env in both.envs)
    assert both.by_share(8) == [a[0], a[1], b[0], a[2], a[3], a[4], b[0], a[0]]


def test_no_environment_and_too_many_are_refused() -> None:
    with pytest.raises(ScenarioError, match="1 to 64 environments, not 0"):
        ScenarioSet([])
    with pytest.raises(ScenarioError, match="not 65"):
        ScenarioSet([ScenarioConfig()] * (MAX_ENVIRONMENTS + 1))


def test_without_a_curriculum_the_scheduled_task_is_the_only_candidate() -> None:
    both = ScenarioSet([lake("a"), lake("b")])
    assert [both.candidates(place).tasks for place in range(20)] == [(both.schedule(place),) for place in range(20)]
    assert not any(both.candidates(place).revisits for place in range(20))


def test_a_curriculum_chooses_among_training_tasks_of_its_environment_and_one_time_in_five_revisits() -> None:
    choosy, again = (ScenarioSet([lake("a", curriculum="success", train_size=40), lake("b")]) for _ in range(2))
    training, places = set(map(str, choosy.envs[0].tasks("train"))), range(0, 2000, 2)
    found = [choosy.candidates(place) for place in places]
    assert {each.tasks[0].env_name for each in found} == {"a"}
    assert all(set(map(str, each.tasks)) <= training for each in found), "no held-out task enters"
    assert len(set(map(str, (task for each in found[:10] for task in each.tasks)))) == 40
    assert 160 < sum(each.revisits for each in found) < 240
    assert [again.candidates(place) for place in places] == found
    plain = ScenarioSet([lake("a", train_size=40), lake("b")])
    assert [each.tasks[0] for each in found] == [plain.schedule(place) for place in places]
