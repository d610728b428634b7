"""What is cancelled ends, even if the answer it waits for arrives at that very moment."""

import asyncio
from types import SimpleNamespace

import pytest

from milepost.cluster.pools.engine_pool import EnginePool
from milepost.cluster.pools.engine_process import EngineHealth
from tests.cluster.pools.hosts.pool_rig import SPEC, HostPlace
from tests.cluster.replay.buffer_rig import rig


class _Calls:
    """One method of an actor's handle: every call returns the next future."""

    def __init__(self) -> None:
        self.answers: list[asyncio.Future[object]] = []

    def remote(self) -> asyncio.Future[object]:
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]


def test_a_probe_cancelled_as_its_answer_arrives_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = SimpleNamespace(start=_Calls(), health=_Calls())
    monkeypatch.setattr(EnginePool, "_launch", lambda _pool, _spec, _index: handle)

    async def probe() -> None:
        pool = EnginePool(SPEC, HostPlace())
        starting = asyncio.create_task(pool.start())
        await asyncio.sleep(0.01)
        handle.start.answers[0].set_result(0)
        await starting
        probing = asyncio.create_task(pool.probe())
        await asyncio.sleep(0.01)
        handle.health.answers[0].set_result(EngineHealth(busy_s=2.5, unanswered=0, metrics_port=9000))
        probing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probing

    asyncio.run(probe())


def test_a_task_that_asks_redis_again_and_again_ends_at_whatever_moment_it_is_cancelled(redis_url: str) -> None:
    async def ask() -> None:
        async with rig(redis_url) as run:

            async def forever() -> None:
                while True:
                    await run.store.command("PING")

            for turns in range(60):  # of the event loop, over the sending and the reading of several commands
                asking = asyncio.create_task(forever())
                for _ in range(turns):
                    await asyncio.sleep(0)
                asking.cancel()
                done, _ = await asyncio.wait({asking}, timeout=0.5)
                assert done, f"cancelled after {turns} turns, and it goes on"
                assert asking.cancelled()

    asyncio.run(ask())
