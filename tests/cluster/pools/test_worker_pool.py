"""The pool's bookkeeping of workers that end, on handles that answer as they are told."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from milepost.actors.worker import ActorConfig
from milepost.cluster.base import restarts
from milepost.cluster.base.exits import DependencyLost
from milepost.cluster.base.restarts import RestartConfig
from milepost.cluster.hosts.places import Place
from milepost.cluster.pools import workers
from milepost.cluster.pools.engines import Rotation
from milepost.cluster.pools.workers import WorkerPool
from milepost.cluster.replay.wire import encode
from milepost.cluster.trajectories.recording import Batch, Told
from milepost.envs.types import Task
from tests.actors.episode_rig import task
from tests.cluster.pools.hosts.pool_rig import HostPlace
from tests.cluster.pools.worker_rig import worker_spec
from tests.cluster.replay.buffer_rig import failure

HOUR_S = 3600.0
ENGINES = Rotation([], is_growing=False)


class Handle:
    """A worker's actor: it runs until `end`, and answers pings while it lives, unless it is `silent`."""

    def __init__(self) -> None:
        self.silent = False
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.run = SimpleNamespace(remote=lambda: self.ended)
        self.ping = SimpleNamespace(remote=self._ping)
        self.set_rotation = SimpleNamespace(remote=lambda _: None)
        self.play = SimpleNamespace(remote=self._play)
        self.played = SimpleNamespace(remote=self._ping)
        self.told: list[Told] = []
        self.take_recordings = SimpleNamespace(remote=self._take_recordings)

    async def _ping(self) -> int:
        if self.silent:
            await asyncio.Event().wait()
        if self.ended.done():
            raise RayActorError
        return 1

    async def _play(self, tasks: list[tuple[int, Task]]) -> list[bytes]:
        await self._ping()
        return [encode(failure("eval", index)) for index, _ in tasks]

    async def _take_recordings(self) -> Batch:
        await self._ping()
        told, self.told = self.told, []
        return Batch(told, lost=0)

    def die(self) -> None:
        self.ended.set_exception(RayActorError())
        self.ended.exception()


class Ledger:
    """Notes whose leases were ended."""

    def __init__(self) -> None:
        self.released: list[str] = []

    async def release_owner(self, name: str) -> None:
        self.released.append(name)


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Handle]:
    handles: list[Handle] = []

    def launch(_pool: WorkerPool, _name: str, _index: int) -> Handle:
        handles.append(Handle())
        return handles[-1]

    monkeypatch.setattr(WorkerPool, "_launch", launch)
    monkeypatch.setattr(workers.ray, "kill", lambda _: None)
    return handles


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of pool and budget."""
    turned = Clock()
    monkeypatch.setattr(workers, "time", turned)
    monkeypatch.setattr(restarts, "time", turned)
    return turned


def pool_of(
    ledger: Any, *, num_workers: int = 1, record: Any = None, place: Place | None = None, **limits: int
) -> WorkerPool:
    spec = worker_spec(actors=ActorConfig(num_workers=num_workers), restarts=RestartConfig(window_s=HOUR_S, **limits))
    return WorkerPool(spec, ledger, ENGINES, record, place or HostPlace())


async def look(pool: WorkerPool) -> None:
    """Tend, with time for the pings to be answered."""
    await pool.tend(ENGINES)
    for _ in range(5):
        await asyncio.sleep(0)
    await pool.tend(ENGINES)


def test_thirty_workers_that_are_killed_over_an_hour_are_all_replaced(made: list[Handle], clock: Clock) -> None:
    async def kill_them() -> None:
        ledger = Ledger()
        pool = pool_of(ledger)
        pool.roll()
        for killed in range(1, 31):
            await look(pool)
            made[-1].die()
            await look(pool)
            clock.now += HOUR_S / 30
            await look(pool)
            assert (len(made), pool.restarts) == (killed + 1, killed)
        assert len(set(ledger.released)) == 30

    asyncio.run(kill_them())


@pytest.mark.usefixtures("clock")
def test_the_pool_goes_on_with_the_workers_it_has_down_to_its_minimum(made: list[Handle]) -> None:
    async def lose_all() -> None:
        pool = pool_of(Ledger(), num_workers=3, min_workers=2, max_per_worker=0)
        pool.roll()
        made[0].die()
        await look(pool)
        await look(pool)
        assert (len(made), pool.restarts) == (3, 0)
        made[1].die()
        with pytest.raises(
            DependencyLost, match=r"restarts\.max_per_worker = 0 in 3600 s is used up, and 1 workers are left"
        ):
            await look(pool)

    asyncio.run(lose_all())


def test_a_worker_that_was_given_up_is_started_again_when_the_window_has_passed(
    made: list[Handle], clock: Clock
) -> None:
    async def wait_for_the_window() -> None:
        pool = pool_of(Ledger(), num_workers=2, max_per_worker=1)
        pool.roll()
        for handle, there in ((0, 3), (2, 3)):
            made[handle].die()
            await look(pool)
            assert len(made) == there
        clock.now += HOUR_S
        await look(pool)
        assert len(made) == 4

    asyncio.run(wait_for_the_window())


def test_a_worker_whose_host_is_gone_gives_its_groups_back_and_is_started_once_there_is_room(
    made: list[Handle], clock: Clock
) -> None:
    async def lose_a_host() -> None:
        place, ledger = HostPlace(), Ledger()
        pool = pool_of(ledger, num_workers=2, place=place, max_per_worker=1, room_timeout_s=100)
        pool.roll()
        place.lost = {1}
        made[1].die()
        await look(pool)
        assert [name.rpartition("-")[2] for name in ledger.released] == ["2"]
        clock.now += HOUR_S
        await look(pool)
        assert (len(made), pool.running, pool.restarts) == (2, 1, 0)
        assert len(await pool.play(list(enumerate([task(), task(target=1)])), 10)) == 2, "by the one that is left"
        place.lost = set()
        await look(pool)
        assert (len(made), pool.running, pool.restarts) == (3, 2, 1)

    asyncio.run(lose_a_host())


def test_a_worker_that_waits_to_start_on_a_lost_host_is_given_up_as_soon_as_ray_knows(made: list[Handle]) -> None:
    async def lose_a_host() -> None:
        place, ledger = HostPlace(), Ledger()
        pool = pool_of(ledger, num_workers=2, place=place)
        made[1].silent = True
        pool.roll()
        for _ in range(2):
            await look(pool)
            assert (len(made), pool.running) == (2, 2)
        place.lost = {1}
        await look(pool)
        assert (pool.running, pool.restarts, len(ledger.released)) == (1, 0, 1)

    asyncio.run(lose_a_host())


def test_a_pool_waits_for_the_host_of_its_last_worker_up_to_a_deadline(made: list[Handle], clock: Clock) -> None:
    async def lose_the_host() -> None:
        place = HostPlace()
        pool = pool_of(Ledger(), place=place, room_timeout_s=100)
        pool.roll()
        place.lost = {0}
        made[0].die()
        await look(pool)
        clock.now += 100
        with pytest.raises(
            DependencyLost,
            match=r"worker-\d+-1 ended .*; its host hostB is gone and Ray has no room for it within "
            r"restarts\.room_timeout_s = 100, and 0 workers are left",
        ):
            await pool.tend(ENGINES)

    asyncio.run(lose_the_host())


def test_a_pool_whose_workers_never_come_up_says_so_long_before_its_budget_is_used_up(
    made: list[Handle], clock: Clock
) -> None:
    async def die_at_birth() -> None:
        pool = pool_of(Ledger(), max_per_worker=40)
        pool.roll()
        for _ in range(5):
            made[-1].die()
            await pool.tend(ENGINES)
            clock.now += 10
            await pool.tend(ENGINES)
        assert len(made) == 6
        made[-1].die()
        with pytest.raises(DependencyLost, match="and 0 workers are left"):
            await pool.tend(ENGINES)

    asyncio.run(die_at_birth())


def test_what_a_lost_worker_had_to_play_is_played_by_the_others_while_it_pauses(made: list[Handle]) -> None:
    async def play() -> list[Any]:
        pool = pool_of(Ledger(), num_workers=2, max_per_worker=0)
        made[0].die()
        return await pool.play(list(enumerate([task(), task(target=1), task(target=2)])), 10)

    assert sorted(result.index for result in asyncio.run(play())) == [0, 1, 2]


def test_what_workers_tell_is_passed_on_also_before_they_are_ended_and_a_lost_one_costs_nobody(
    made: list[Handle],
) -> None:
    heard: list[int] = []

    async def tell() -> None:
        pool = pool_of(Ledger(), num_workers=2, record=lambda batch: heard.extend(told.index for told in batch.told))
        pool.roll()
        for handle, index in zip(made, (0, 1), strict=True):
            handle.told = [Told("g", index, "open", b"")]
        await look(pool)
        await look(pool)
        assert sorted(heard) == [0, 1]
        made[0].die()
        made[1].told = [Told("g", 2, "open", b"")]
        await look(pool)
        await look(pool)
        made[1].told = [Told("g", 3, "open", b"")]
        await pool.stop()
        assert heard[2:] == [2, 3]

    asyncio.run(tell())
