"""What the episodes of a worker's process share, and how what it plays outside the ledger travels."""

import asyncio
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from milepost.actors.episode import run_episode
from milepost.actors.worker import ActorConfig
from milepost.cluster.pools.engines import Rotation, RoutedEngines
from milepost.cluster.pools.worker_process import WorkerActor, resources_for
from milepost.cluster.replay.buffer import BufferConfig
from milepost.cluster.replay.wire import decode
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Failure, Task, Trajectory
from tests.actors.episode_rig import ScriptedEngine, task
from tests.broken_envs import CountingEnv
from tests.cluster.pools.worker_rig import worker_spec

HERE = "tests.cluster.pools.test_worker_process"
EPISODES = 64
together = threading.Barrier(EPISODES)


class WaitsForAll(CountingEnv):
    """Its step returns once `EPISODES` of them are in their step, and raises where they are not for 20 s."""

    def step(self, response: str) -> Any:
        together.wait(20)
        return super().step(response)


def worker_on(policy: Path, dialogue: Dialogue, **settings: Any) -> WorkerActor:
    """A worker without Ray and Redis."""
    spec = worker_spec(model=policy, **settings)
    engines = RoutedEngines(Rotation([], is_growing=False), worker=0, request_timeout_s=1, start_timeout_s=1)
    resources = resources_for(spec, engines)
    resources.engine = ScriptedEngine(dialogue)
    actor = WorkerActor.__new__(WorkerActor)
    actor._spec, actor._endpoint, actor._played = spec, None, 0
    actor._play_one = partial(run_episode, resources)
    return actor


def played(actor: WorkerActor, *tasks: Task) -> list[Trajectory | Failure]:
    return [decode(data) for data in asyncio.run(actor.play(list(enumerate(tasks))))]


def test_sixty_four_episodes_wait_for_their_environments_side_by_side(tiny_policy: Path, dialogue: Dialogue) -> None:
    actor = worker_on(tiny_policy, dialogue, group_size=8)
    assert actor._spec.concurrent_episodes == EPISODES
    results = played(actor, *[task(f"{HERE}:WaitsForAll", target=2)] * EPISODES)
    assert [(result.index, result.outcome) for result in results if isinstance(result, Trajectory)] == [
        (index, "success") for index in range(EPISODES)
    ]


@pytest.mark.parametrize(("groups", "threads", "places"), [(4, 0, 8), (1000, 0, 256), (4, 3, 3)])
def test_calls_side_by_side_are_as_many_as_episodes_up_to_a_bound_or_to_the_users(
    groups: int, threads: int, places: int, tiny_policy: Path
) -> None:
    spec = worker_spec(model=tiny_policy, actors=ActorConfig(concurrent_groups=groups, env_threads=threads))
    engines = RoutedEngines(Rotation([], is_growing=False), worker=0, request_timeout_s=1, start_timeout_s=1)
    free = resources_for(spec, engines).places
    assert [free.acquire(blocking=False) for _ in range(places + 1)] == [True] * places + [False]


def test_an_evaluations_episode_that_is_too_large_fails_by_that_name_and_the_others_arrive(
    tiny_policy: Path, dialogue: Dialogue
) -> None:
    actor = worker_on(tiny_policy, dialogue, buffer=BufferConfig(max_entry_bytes=2048))
    short, long = played(actor, task(target=1), task(target=10))
    assert isinstance(short, Trajectory)
    assert (short.outcome, len(short.turns)) == ("success", 1)
    assert isinstance(long, Failure)
    assert (long.boundary, long.error, long.turn, long.index) == ("infra", "WireError", 10, 1)
    assert long.message.startswith("oversize: episode 1 of group eval takes ")
    assert long.message.endswith(
        "the limit is 2048: raise buffer.max_entry_bytes, or shorten episodes and observations"
    )
