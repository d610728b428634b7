"""The clock of a run: no clock that is set, no pause and no restart takes a lease from an owner who lives."""

import asyncio
from types import SimpleNamespace

import pytest

from milepost.cluster.replay import ledger, store
from tests.cluster.replay.buffer_rig import Rig, rig


class Clock:
    """The driver's monotonic clock, set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(ledger, "time", SimpleNamespace(monotonic=lambda: self.now_s))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def seconds(run: Rig, clock: Clock, count: int, *, renews: str = "") -> list[str]:
    """The driver tends once a second, and `renews` keeps the lease of its group alive; groups that were given up."""
    lost = []
    for _ in range(count):
        clock.now_s += 1
        if renews:
            await run.ledger.renew([renews], "worker-1", 60.0)
        lost += [reissue.group_id for reissue in await run.ledger.reclaim()]
    return lost


def test_the_servers_clock_is_not_asked_for_anything() -> None:
    assert "TIME" not in store._SCRIPT.replace("TIMEOUT", "")


def test_a_lease_ends_when_its_owner_is_silent_for_so_long_and_no_sooner(redis_url: str, clock: Clock) -> None:
    async def live() -> None:
        async with rig(redis_url) as run:
            await run.issue("silent", lease_s=60)
            await run.issue("living", lease_s=60)
            assert await seconds(run, clock, 59, renews="living") == []
            assert await seconds(run, clock, 1, renews="living") == ["silent"]
            assert await seconds(run, clock, 200, renews="living") == []

    asyncio.run(live())


def test_an_hour_in_which_nobody_could_renew_takes_no_lease(redis_url: str, clock: Clock) -> None:
    """The driver was stopped, or Redis was away: then the owners come back."""

    async def pause() -> None:
        async with rig(redis_url) as run:
            await run.issue("living", lease_s=60)
            assert await seconds(run, clock, 10, renews="living") == []
            clock.now_s += 3600
            assert await run.ledger.reclaim() == []
            assert await seconds(run, clock, 100, renews="living") == []

    asyncio.run(pause())


def test_a_driver_that_starts_again_goes_on_with_the_clock_of_its_run(redis_url: str, clock: Clock) -> None:
    async def restart() -> None:
        async with rig(redis_url) as run:
            await run.issue("g", lease_s=60)
            assert await seconds(run, clock, 40) == []
        clock.now_s = 7.0  # another boot: the monotonic clock begins anew
        async with rig(redis_url, run_id=run.run_id) as again:
            assert await again.store.now_ms() == 40_000
            assert await seconds(again, clock, 19) == []
            assert await seconds(again, clock, 1) == ["g"]

    asyncio.run(restart())


def test_a_tick_whose_reply_was_lost_does_not_count_twice(redis_url: str, clock: Clock) -> None:
    async def tick() -> None:
        async with rig(redis_url) as run:
            clock.now_s += 2
            assert await run.ledger.tick() == 2000
            await run.store.move("tick", [], 2000)
            await run.store.move("tick", [], 1000)
            assert await run.store.now_ms() == 2000

    asyncio.run(tick())
