"""The curriculum on a real Redis: recent success by hand, what is left out, and what a worker then plays."""

import asyncio

import msgspec
import pytest

from milepost.cluster.histories import GroupHistories
from milepost.cluster.pools.ledger_source import LedgerSource
from milepost.cluster.replay.task_success import TaskSuccess
from milepost.envs.scenarios import Candidates, ScenarioConfig, ScenarioSet
from milepost.envs.types import Group, Task
from tests.cluster.replay.buffer_rig import Rig, rig, trajectory

CHOOSY = ScenarioConfig(path="tests.coin_env:CoinEnv", name="coin", train_size=3, heldout_size=2, curriculum="success")


def group(name: str, of: Task, solved: int, size: int = 10) -> Group:
    played = [
        msgspec.structs.replace(trajectory(name, i), task=of, outcome="success" if i < solved else "failure")
        for i in range(size)
    ]
    return Group(group_id=name, task=of, trajectories=played)


def tasks(config: ScenarioConfig = CHOOSY) -> list[Task]:
    return ScenarioSet(config).tasks("train")


@pytest.mark.parametrize(
    ("solved", "is_in"),
    [
        ([], True),  # never trained on
        ([0], False),
        ([1], True),
        ([9], True),
        ([10], False),
        ([0, 1], False),  # .0, then .05
        ([0, 1, 2], True),  # .0, .05, .125
        ([5, 10, 10], True),  # .5, .75, .875
        ([5, 10, 10, 10], False),  # ..., .9375
    ],
)
def test_a_task_is_in_while_its_recent_success_lies_between_10_and_90_percent(
    solved: list[int], is_in: bool, redis_url: str
) -> None:
    async def check() -> None:
        async with rig(redis_url) as run:
            first, second, _ = tasks()
            for number, wins in enumerate(solved):
                await TaskSuccess(run.link, run.run_id).add(group(f"g{number}", first, wins))
            again = TaskSuccess(run.link, run.run_id)  # as after a restart
            assert (await again.choose(Candidates((first, second))) == first) is is_in
            assert (await again.choose(Candidates((second, first), revisits=True)) == first) is not is_in

    asyncio.run(check())


def test_a_repeated_call_counts_once_and_other_environments_have_tasks_of_their_own(redis_url: str) -> None:
    async def check() -> None:
        async with rig(redis_url) as run:
            first, second, third = tasks()
            success = TaskSuccess(run.link, run.run_id)
            await success.add(group("a", first, 0))
            for _ in range(2):
                await success.add(group("b", first, 3))  # .15, and .225 if it counted twice
            assert await success.choose(Candidates((first, second))) == first
            for of in (second, third):
                await success.add(group("c", of, 10))
            assert await success.choose(Candidates((second, third))) == second, "all are left out: the scheduled one"
            other = msgspec.structs.replace(second, env_name="other")
            assert await success.choose(Candidates((other, first))) == other

    asyncio.run(check())


async def issued(run: Rig, config: ScenarioConfig, count: int) -> list[Task]:
    source = LedgerSource(
        run.ledger, TaskSuccess(run.link, run.run_id), ScenarioSet(config), owner="w", group_size=2, lease_s=60
    )
    found = []
    for _ in range(count):
        ticket = await source.next_group()
        assert ticket is not None
        found.append(ticket.task)
    return found


def test_workers_play_what_is_in_and_now_and_then_what_is_left_out_and_never_a_held_out_task(redis_url: str) -> None:
    async def check() -> None:
        async with rig(redis_url, groups_per_update=1000) as run:
            _, easy, hard = tasks()
            histories = GroupHistories(None, TaskSuccess(run.link, run.run_id), curricula={"coin"})
            await histories.remember([group("e", easy, 10), group("h", hard, 0)], 1)
            seeds = [task.seed for task in await issued(run, CHOOSY, 100)]
            training = {task.seed for task in tasks()}
            assert set(seeds) == training
            assert 10 <= sum(seed in (easy.seed, hard.seed) for seed in seeds) <= 35

    asyncio.run(check())


def test_without_a_curriculum_nothing_is_kept_and_the_schedule_is_played(redis_url: str) -> None:
    async def check() -> None:
        async with rig(redis_url, groups_per_update=1000) as run:
            plain = CHOOSY.model_copy(update={"curriculum": "none"})
            first, *_ = tasks()
            histories = GroupHistories(None, TaskSuccess(run.link, run.run_id), curricula=set())
            await histories.remember([group("e", first, 10)], 1)
            assert not await run.client.keys(f"mp:{{{run.run_id}}}:success:*")
            scenarios = ScenarioSet(plain)
            assert await issued(run, plain, 9) == [scenarios.schedule(place) for place in range(9)]

    asyncio.run(check())


def test_a_group_that_is_not_admitted_keeps_the_task_that_was_chosen_for_it(redis_url: str) -> None:
    async def check() -> None:
        async with rig(redis_url) as run:
            success = TaskSuccess(run.link, run.run_id)
            source = LedgerSource(run.ledger, success, ScenarioSet(CHOOSY), owner="w", group_size=2, lease_s=60)
            await run.ledger.pause()
            assert await source.next_group() is None
            chosen = source._chosen
            assert chosen is not None
            await success.add(group("g", chosen[1], 10))
            await run.ledger.resume()
            ticket = await source.next_group()
            assert ticket is not None
            assert (ticket.group_id, ticket.task) == ("g00000000", chosen[1])

    asyncio.run(check())
