"""A worker plays what its source gives and hands all of it to its sink, a bounded number of groups at a time."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import pytest

from milepost.actors import worker
from milepost.actors.engine import Completion
from milepost.actors.episode import run_episode
from milepost.actors.resources import RolloutResources
from milepost.actors.worker import FailurePause, Ticket, Worker
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Failure, Task, Trajectory
from tests.actors.episode_rig import HERE, ScriptedEngine, WaitingEngine, hung_calls, resources, task


@dataclass
class Supply:
    """Groups from a list, in memory; asks `worker` to stop when they have all been given."""

    tasks: Iterator[Task]
    size: int = 2
    worker: Worker | None = None
    given: list[str] = field(default_factory=list)
    renewed: list[list[str]] = field(default_factory=list)
    renewal: asyncio.Event = field(default_factory=asyncio.Event)
    refuses_renewal: bool = False

    async def next_group(self) -> Ticket | None:
        next_task = next(self.tasks, None)
        if next_task is None:
            assert self.worker is not None
            self.worker.stop()
            return None
        self.given.append(f"g{len(self.given)}")
        return Ticket(group_id=self.given[-1], task=next_task, indices=tuple(range(self.size)))

    async def renew(self, group_ids: list[str]) -> None:
        if self.refuses_renewal:
            raise ConnectionError("the ledger is gone")
        self.renewed.append(group_ids)
        if len(self.renewed) == 2:
            self.renewal.set()


@dataclass
class Shelf:
    """Results in memory."""

    results: list[Trajectory | Failure] = field(default_factory=list)
    full: bool = False

    async def put(self, result: Trajectory | Failure) -> None:
        if self.full:
            raise TimeoutError("the buffer stayed full")
        self.results.append(result)

    def counts(self) -> Counter[str]:
        return Counter(result.group_id for result in self.results)


def playing(here: RolloutResources, supply: Supply, shelf: Shelf, groups: int) -> Worker:
    return Worker(here, partial(run_episode, here), supply, shelf, concurrent_groups=groups)


async def run(worker: Worker, supply: Supply, renew_every_s: float = 60) -> int:
    supply.worker = worker
    async with asyncio.timeout(30):
        return await worker.run(renew_every_s=renew_every_s)


def test_every_episode_of_every_group_reaches_the_sink_and_then_the_worker_stops(dialogue: Dialogue) -> None:
    async def one() -> None:
        tasks = [task(), task("tests.broken_envs:RaisesInStep"), task(target=1)]
        supply, shelf = Supply(iter(tasks), size=3), Shelf()
        async with resources(dialogue) as here:
            assert await run(playing(here, supply, shelf, 2), supply) == 0
        assert shelf.counts() == {"g0": 3, "g1": 3, "g2": 3}
        assert {(r.group_id, r.index) for r in shelf.results} == {(g, i) for g in supply.given for i in range(3)}
        assert {r.group_id for r in shelf.results if isinstance(r, Failure)} == {"g1"}

    asyncio.run(one())


def test_only_the_missing_episodes_of_a_group_are_played(dialogue: Dialogue) -> None:
    class Remainder(Supply):
        async def next_group(self) -> Ticket | None:
            ticket = await super().next_group()
            return ticket and Ticket(group_id=ticket.group_id, task=ticket.task, indices=(1, 6))

    async def one() -> list[int]:
        supply, shelf = Remainder(iter([task()])), Shelf()
        async with resources(dialogue) as here:
            await run(playing(here, supply, shelf, 2), supply)
        return sorted(result.index for result in shelf.results)

    assert asyncio.run(one()) == [1, 6]


def test_the_bound_on_concurrent_groups_is_reached_and_never_exceeded(dialogue: Dialogue) -> None:
    at_work: list[int] = []

    class Watched(Supply):
        async def next_group(self) -> Ticket | None:
            ticket = await super().next_group()
            done = sum(count == self.size for count in shelf.counts().values())
            at_work.append(len(self.given) - done)
            return ticket

    shelf = Shelf()

    async def one() -> None:
        supply = Watched(task(target=1 + i % 3) for i in range(20))
        async with resources(dialogue) as here:
            await run(playing(here, supply, shelf, 3), supply)
        assert len(shelf.results) == 40

    asyncio.run(one())
    assert max(at_work) == 3


def test_the_lease_of_a_group_is_renewed_as_long_as_it_is_played(dialogue: Dialogue) -> None:
    async def one() -> Supply:
        supply, shelf = Supply(iter([task(), task()])), Shelf()
        async with resources(dialogue, engine=WaitingEngine(dialogue, supply.renewal)) as here:
            await run(playing(here, supply, shelf, 2), supply, renew_every_s=0.02)
        assert len(shelf.results) == 4
        return supply

    renewed = asyncio.run(one()).renewed
    assert len(renewed) >= 2  # the engine answers after the second renewal only
    assert all(set(groups) <= {"g0", "g1"} and groups for groups in renewed)
    assert ["g0", "g1"] in renewed


def test_a_stopped_worker_finishes_what_it_has_and_takes_no_more(dialogue: Dialogue) -> None:
    async def one() -> None:
        gate = asyncio.Event()
        supply, shelf = Supply(iter([task()] * 100)), Shelf()
        async with resources(dialogue, engine=(engine := WaitingEngine(dialogue, gate))) as here:
            worker = playing(here, supply, shelf, 2)
            running = asyncio.create_task(run(worker, supply))
            await engine.asked.wait()
            worker.stop()
            given = len(supply.given)
            gate.set()
            assert await running == 0
        assert len(supply.given) == given < 100
        assert shelf.counts() == dict.fromkeys(supply.given, 2)

    asyncio.run(one())


def test_a_worker_with_a_hung_call_finishes_the_other_episodes_and_retires(dialogue: Dialogue) -> None:
    async def one() -> None:
        async with resources(dialogue, env_timeout_s=1) as here:

            class FourThenMoreOnceHung(Supply):
                async def next_group(self) -> Ticket | None:
                    return await super().next_group() if len(self.given) < 4 or here.hung else None

            tasks = [task(f"{HERE}:HangsInStep"), *[task(target=9)] * 9]
            supply, shelf = FourThenMoreOnceHung(iter(tasks), size=1), Shelf()
            assert await run(playing(here, supply, shelf, 4), supply) == 1
            assert hung_calls.now == 1
        assert shelf.counts() == {"g0": 1, "g1": 1, "g2": 1, "g3": 1}
        [lost] = [result for result in shelf.results if isinstance(result, Failure)]
        assert (lost.group_id, lost.error) == ("g0", "TimeoutError")

    asyncio.run(one())


@pytest.mark.parametrize("broken", ["sink", "source", "renewal"])
def test_a_sink_or_source_that_fails_ends_the_worker_loudly_and_nothing_runs_on(
    broken: str, dialogue: Dialogue
) -> None:
    class Breaks(Supply):
        async def next_group(self) -> Ticket | None:
            if broken == "source" and len(self.given) == 2:
                raise ConnectionError("the ledger is gone")
            return await super().next_group()

    async def one() -> None:
        supply, shelf = Breaks(iter([task()] * 4)), Shelf(full=broken == "sink")
        supply.refuses_renewal = broken == "renewal"
        gate = asyncio.Event()
        engine = ScriptedEngine(dialogue) if broken == "sink" else WaitingEngine(dialogue, gate)
        async with resources(dialogue, engine=engine) as here:
            with pytest.raises((ExceptionGroup, ConnectionError)) as caught:
                await run(playing(here, supply, shelf, 4), supply, renew_every_s=0.02)
            assert len(asyncio.all_tasks()) == 1
        text = repr(caught.value)
        assert ("the buffer stayed full" if broken == "sink" else "the ledger is gone") in text

    asyncio.run(one())


def test_a_cancelled_worker_leaves_no_episode_behind(dialogue: Dialogue) -> None:
    async def one() -> None:
        supply = Supply(iter([task()] * 4))
        async with resources(dialogue, engine=(engine := WaitingEngine(dialogue, asyncio.Event()))) as here:
            running = asyncio.create_task(run(playing(here, supply, Shelf(), 2), supply))
            await engine.asked.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(one())


def test_a_group_given_twice_is_played_twice_and_both_are_seen_to_the_end(dialogue: Dialogue) -> None:
    class Twice(Supply):
        async def next_group(self) -> Ticket | None:
            ticket = await super().next_group()
            return ticket and Ticket(group_id="same", task=ticket.task, indices=ticket.indices)

    class Slow(ScriptedEngine):
        async def generate(self, prompt_ids: list[int]) -> Completion:
            await asyncio.sleep(0.02)
            return await super().generate(prompt_ids)

    async def one() -> Counter[str]:
        # The first is under way when the second ends.
        supply, shelf = Twice(iter([task(target=9), task(target=1)])), Shelf()
        async with resources(dialogue, engine=Slow(dialogue)) as here:
            await run(playing(here, supply, shelf, 2), supply)
        return shelf.counts()

    assert asyncio.run(one()) == {"same": 4}


def test_a_worker_whose_groups_do_nothing_but_fail_slows_down_to_one_group_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: now[0]))
    pause = FailurePause()
    assert pause.allows(7, 8)
    pauses = []
    for _ in range(7):
        pause.all_failed("", now[0])
        pause.all_failed("", now[0] - 1)  # it began beside one that is counted
        began = now[0]
        while not pause.allows(0, 8):
            now[0] += 0.25
        assert not pause.allows(1, 8)
        pauses.append(now[0] - began)
    assert pauses == [0.5, 1, 2, 4, 8, 10, 10]
    pause.came_through("")
    assert pause.allows(7, 8)
    assert not pause.allows(8, 8)
    pause.all_failed("", now[0])
    assert not pause.allows(0, 8), "it pauses anew"
    now[0] += 0.5
    assert pause.allows(0, 8)


def test_an_environment_that_fails_slows_the_worker_only_while_no_other_comes_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: now[0]))
    pause = FailurePause()
    pause.all_failed("shop", now[0])
    assert not pause.allows(0, 8), "nothing else is known yet"
    pause.came_through("lake")
    for _ in range(3):
        pause.all_failed("shop", now[0])
        assert pause.allows(7, 8)
    pause.all_failed("lake", now[0])
    assert not pause.allows(0, 8), "now everything fails"


def test_a_service_that_is_away_sees_few_groups_meanwhile_and_all_of_them_once_it_is_back(dialogue: Dialogue) -> None:
    broken, shelf, at_once = task("tests.broken_envs:RaisesInStep"), Shelf(), []

    class Watched(Supply):
        async def next_group(self) -> Ticket | None:
            ticket = await super().next_group()
            at_once.append(len(self.given) - sum(count == self.size for count in shelf.counts().values()))
            return ticket

    async def one() -> None:
        supply = Watched(iter([broken] * 5 + [task()] * 4))
        async with resources(dialogue) as here:
            await run(playing(here, supply, shelf, 4), supply)

    asyncio.run(one())
    assert len(shelf.results) == 18
    assert max(at_once[:4]) == 4
    assert at_once[4:6] == [1, 1], "one group to see: it fails, too; the next one comes through"
    assert max(at_once[6:]) > 1
