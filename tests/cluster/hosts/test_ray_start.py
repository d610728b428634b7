"""A start of Ray is heard through to its end, or given up; what refuses it is told in one line."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
import ray
from ray.exceptions import AuthenticationError

from milepost.cluster.base.exits import DependencyLost
from milepost.cluster.hosts import ray_start
from milepost.cluster.hosts.ray_start import RayStart, start_ray


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray's parts were ended by a signal: its start comes to nothing."""
    released = threading.Event()
    monkeypatch.setattr(ray_start, "_GIVE_UP_AFTER_S", 0.05)
    monkeypatch.setattr(ray_start, "start_ray", lambda _: released.wait(60))
    yield
    released.set()


@pytest.mark.usefixtures("never")
@pytest.mark.timeout(20)
def test_a_start_that_comes_to_nothing_is_given_up_and_holds_up_nobody() -> None:
    async def stopped() -> None:
        start = RayStart("")
        beginning = asyncio.ensure_future(start.begin())
        await asyncio.sleep(0)
        beginning.cancel()
        await start.end()

    asyncio.run(stopped())  # it would wait for a thread of the loop's own


@pytest.mark.parametrize("kind", [ConnectionError, Exception])  # Ray raises the latter itself for a part that is slow
def test_a_start_that_fails_has_nothing_to_end(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    def refused(**_: object) -> None:
        raise kind("nobody is there\nand more")

    async def failed() -> None:
        start = RayStart("10.0.0.1:6379")
        with pytest.raises(DependencyLost, match=r"^Ray at '10\.0\.0\.1:6379' cannot be used: nobody is there$"):
            await start.begin()
        await start.end()

    monkeypatch.setattr(ray, "init", refused)
    asyncio.run(failed())


def test_a_ray_that_wants_its_token_is_no_defect_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_: object) -> None:
        raise AuthenticationError("Token authentication is enabled but no authentication token was found")

    monkeypatch.setattr(ray, "init", refused)
    with pytest.raises(DependencyLost, match=r"'auto' wants its token: set RAY_AUTH_MODE=token"):
        start_ray("auto")
