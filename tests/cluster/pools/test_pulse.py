"""A worker that does not answer is killed; one that answers, is dead already, or whose driver stood still is not."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from ray.exceptions import RayActorError

from milepost.cluster.pools import pulse
from milepost.cluster.pools.pulse import Pulse


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything a tenth as long as it is."""
    for name in ("_START_UP_S", "_GRACE_S", "_EVERY_S", "_LOOK_EVERY_S"):
        monkeypatch.setattr(pulse, name, getattr(pulse, name) / 10)


def killed_after(ping: Callable[[], Awaitable[int]], *, watched_s: float, freeze_s: float = 0.0) -> float | None:
    """When a worker with a limit of 1 s was killed, in seconds."""

    async def go() -> float | None:
        started, kills = time.monotonic(), list[float]()
        beating = Pulse("worker-1", ping, lambda: kills.append(time.monotonic() - started), limit_s=1.0)
        await asyncio.sleep(0.05)
        time.sleep(freeze_s)
        await asyncio.sleep(watched_s)
        beating.stop()
        return kills[0] if kills else None

    return asyncio.run(go())


async def answers() -> int:
    return 1


async def never_answers() -> int:
    await asyncio.sleep(3600)
    return 1


async def is_dead() -> int:
    raise RayActorError


def stops_after(pings: int) -> Callable[[], Awaitable[int]]:
    left = iter(range(pings))
    return lambda: never_answers() if next(left, None) is None else answers()


def answers_late(after_s: float) -> Callable[[], Awaitable[int]]:
    async def ping() -> int:
        await asyncio.sleep(after_s)
        return 1

    return ping


def test_one_that_stops_answering_is_killed_soon_after_the_limit_of_a_call() -> None:
    after = killed_after(stops_after(2), watched_s=2)
    assert after is not None
    assert after >= 1.2  # two answers, then 1 s and the grace of 0.2 s


def test_one_that_has_not_come_up_yet_has_longer() -> None:
    assert killed_after(never_answers, watched_s=1.6) is None


def test_one_that_answers_in_time_or_is_dead_already_is_not_killed() -> None:
    assert killed_after(answers, watched_s=0.5) is None
    assert killed_after(answers_late(0.3), watched_s=1.5) is None
    assert killed_after(is_dead, watched_s=0.5) is None


def test_a_driver_that_stood_still_does_not_blame_its_workers() -> None:
    late = iter([0.0, 0.3])
    ping = answers_late(0.3)
    assert killed_after(lambda: ping() if next(late, None) else answers(), watched_s=0.6, freeze_s=1.4) is None
