"""A patient client outlives an absence of Redis; no client waits longer than it says or hides a refusal."""

import asyncio
import time
from pathlib import Path

import pytest

from milepost.cluster.base.exits import DependencyLost
from milepost.cluster.replay import client as client_module
from milepost.cluster.replay import redis_server
from milepost.cluster.replay.client import BufferRefused, BufferUnavailable, ScriptUnknown, connect


def test_a_patient_client_waits_until_redis_is_back_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_SILENT_S", 0.5)
    said: list[str] = []

    async def ask(server: redis_server.RedisServer) -> None:
        client = connect(server.url, patience_s=60, note=said.append)
        try:
            await client.command("SET", "key", "kept")
            server.stop()
            asking = [asyncio.create_task(client.command("GET", "key")) for _ in range(2)]
            async with asyncio.timeout(30):
                while not said:
                    await asyncio.sleep(0.1)
            assert not any(task.done() for task in asking), "Redis is away, and somebody answered"
            server.revive()
            async with asyncio.timeout(30):
                assert await asyncio.gather(*asking) == [b"kept", b"kept"]
        finally:
            await client.aclose()

    with redis_server.start(tmp_path) as server:
        asyncio.run(ask(server))
    [waiting, back] = said
    assert waiting.startswith("waiting for Redis, 60 s at most: Redis does not answer GET")
    assert back == "Redis is back"


@pytest.mark.parametrize(("patience_s", "said"), [(0.0, "does not answer GET"), (2.0, "waited 2 s for Redis")])
def test_patience_has_an_end_that_ends_the_program_as_a_lost_dependency(
    tmp_path: Path, patience_s: float, said: str
) -> None:
    async def ask(url: str) -> None:
        client = connect(url, patience_s=patience_s)
        started = time.monotonic()
        try:
            with pytest.raises(BufferUnavailable, match=said) as end:
                await client.command("GET", "key")
        finally:
            await client.aclose()
        assert isinstance(end.value, DependencyLost)
        assert end.value.code == 4
        assert time.monotonic() - started < patience_s + 30

    with redis_server.start(tmp_path) as server:
        url = server.url
    asyncio.run(ask(url))


def test_a_refusal_is_not_waited_for(redis_url: str) -> None:
    async def ask() -> None:
        client = connect(redis_url, patience_s=600)
        try:
            async with asyncio.timeout(20):
                with pytest.raises(BufferRefused, match="wrong number of arguments"):
                    await client.command("GET")
                with pytest.raises(ScriptUnknown):
                    await client.command("EVALSHA", "0" * 40, 0)
        finally:
            await client.aclose()

    asyncio.run(ask())


def test_a_patient_wait_ends_when_it_is_cancelled(tmp_path: Path) -> None:
    async def ask(url: str) -> None:
        client = connect(url, patience_s=600)
        asking = asyncio.create_task(client.command("PING"))
        await asyncio.sleep(0.5)
        asking.cancel()
        done, _ = await asyncio.wait({asking}, timeout=10)
        assert done
        assert asking.cancelled()
        await client.aclose()

    with redis_server.start(tmp_path) as server:
        url = server.url
    asyncio.run(ask(url))
