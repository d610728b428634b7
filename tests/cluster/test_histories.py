"""What earlier groups of a task met reaches the next update of the task, where a strategy keeps it."""

import asyncio

from milepost.cluster.histories import GroupHistories
from milepost.cluster.replay.history import TaskHistory
from milepost.envs.types import Group
from tests.cluster.replay.buffer_rig import rig, task, trajectory


def group(name: str, size: int = 2) -> Group:
    return Group(group_id=name, task=task(), trajectories=[trajectory(name, index) for index in range(size)])


def test_the_next_update_of_a_task_is_told_what_earlier_groups_of_it_met(redis_url: str) -> None:
    async def check() -> None:
        async with rig(redis_url) as run:
            histories = GroupHistories(TaskHistory(run.link, run.run_id, decay=0.5))
            first = group("first")
            assert await histories.fetch([first], 0) == ((),)
            for _ in range(2):  # a repeated call counts once
                await histories.remember([first], 1)
            told = await histories.fetch([group("second")], 2)
            assert told is not None
            ((transition,),) = told
            # two episodes a -left-> success, faded by one version
            assert (transition.anchor, transition.action, transition.won, transition.count) == ("a", "left", True, 1.0)
            await histories.settle(1)

    asyncio.run(check())


def test_without_a_history_nothing_is_told_or_kept() -> None:
    async def check() -> None:
        histories = GroupHistories(None)
        await histories.remember([group("g")], 1)
        assert await histories.fetch([group("g")], 1) is None
        await histories.settle(1)

    asyncio.run(check())
