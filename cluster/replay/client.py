"""Connections to Redis that answer, wait, or say why not.

A patient client repeats a command while Redis is away, until its deadline: the driver's is patient, for whatever it
asks may be repeated and its run outlives a restart of Redis; a worker's is not, for it has something better to do.
Every failure is one of two: waiting may help (`BufferUnavailable`) or not (`BufferRefused`). Nobody who catches
neither of them needs to: either one ends the program with its reason.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from milepost.cluster.base.exits import DependencyLost

Argument = str | bytes | int | float

BLOCK_S = 2.0
"""Longest time one command may block in the server; the socket waits a little longer than this."""
_SOCKET_TIMEOUT_S = BLOCK_S + 3.0
_RETRIES = 3
_PAUSE_S = 1.0
_PASSING = ("MISCONF", "BUSY ", "CLUSTERDOWN", "TRYAGAIN")
"""What Redis answers in a condition that passes: its disk is full, a script runs, a node is away."""


class BufferUnavailable(DependencyLost):
    """Redis cannot be used now: it does not answer, is loading, or has no room. Waiting may help."""


class BufferFull(BufferUnavailable):
    """Redis is at its memory limit: nothing was stored."""


class ScriptUnknown(Exception):
    """The server was restarted, or has never seen the script of this digest."""


class BufferRefused(DependencyLost):
    """Redis answers, but what was asked cannot be: a wrong setting, a broken rule. Waiting does not help."""


class Client:
    """One connection, as `connect` makes it."""

    def __init__(self, connection: AsyncRedis, *, patience_s: float) -> None:
        self.connection = connection
        self._patience_s = patience_s

    async def command(self, *words: Argument) -> Any:
        """Run one Redis command, again and again while the client is patient and Redis away.

        Raises BufferFull at the memory limit, BufferUnavailable where Redis does not answer or is in a state that
        passes, BufferRefused for every other refusal, ScriptUnknown for an EVALSHA that must become an EVAL.
        """
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return await self._once(*words)
            except BufferUnavailable as error:
                if time.monotonic() + _PAUSE_S > deadline:
                    if not self._patience_s:
                        raise
                    raise BufferUnavailable(f"waited {self._patience_s:g} s for Redis to come back: {error}") from error
            await asyncio.sleep(_PAUSE_S)

    async def _once(self, *words: Argument) -> Any:
        before = _cancellations()
        try:
            return await self.connection.execute_command(*words)  # type: ignore[no-untyped-call]
        except redis.RedisError as error:
            raise _translated(error, str(words[0])) from error
        finally:
            # The library waits with asyncio.wait_for, which on Python 3.11 drops a cancellation that comes together
            # with what it waits for. A task that loops over commands would never end.
            if _cancellations() > before:
                raise asyncio.CancelledError

    async def aclose(self) -> None:
        """Close the connection."""
        await self.connection.aclose()


def connect(url: str, *, patience_s: float = 0.0) -> Client:
    """Asyncio client for `url`: binary replies, no endless wait, few retries (all our calls can be repeated).

    `patience_s`: how long a command may wait for a Redis that is away; 0 fails at once.
    """
    connection = AsyncRedis.from_url(
        url,
        protocol=2,
        socket_timeout=_SOCKET_TIMEOUT_S,
        socket_connect_timeout=_SOCKET_TIMEOUT_S,
        health_check_interval=15,
        retry=AsyncRetry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), _RETRIES),
    )
    return Client(connection, patience_s=patience_s)


def connect_sync(url: str) -> redis.Redis:
    """Blocking client for `url`, with the same limits as `connect` but no retries."""
    return redis.Redis.from_url(
        url,
        protocol=2,
        socket_timeout=_SOCKET_TIMEOUT_S,
        socket_connect_timeout=_SOCKET_TIMEOUT_S,
        health_check_interval=15,
        retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 0),
    )


async def check_server(client: Client) -> None:
    """Refuse a server that can lose what it acknowledged. Reads INFO only, which narrow ACL users may.

    Raises BufferRefused for Redis before 6.2, an evicting memory policy, or persistence without an append-only file;
    BufferUnavailable where the server does not answer.
    """
    try:
        info = await client.connection.info()
    except redis.AuthenticationError as error:
        raise BufferRefused(
            f"Redis refuses the credentials ({error}): check user and password of the buffer"
        ) from error
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise BufferUnavailable(f"Redis does not answer INFO: {error}") from error
    version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    if version < (6, 2):
        raise BufferRefused(f"Redis is version {info['redis_version']}, the buffer needs 6.2 or newer: upgrade it")
    if info["maxmemory_policy"] != "noeviction":
        raise BufferRefused(
            f"Redis has maxmemory-policy {info['maxmemory_policy']}, and would delete the buffer when memory is short:"
            " run CONFIG SET maxmemory-policy noeviction"
        )
    if not int(info["aof_enabled"]):
        raise BufferRefused("Redis keeps no append-only file and would lose the buffer: run CONFIG SET appendonly yes")


async def check_url(url: str) -> None:
    """`check_server` of the server behind `url`, on a connection of its own."""
    client = connect(url)
    try:
        await check_server(client)
    finally:
        await client.aclose()


def _cancellations() -> int:
    """How often the task at hand was asked to end."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0


def _translated(error: redis.RedisError, command: str) -> Exception:
    text = str(error)
    if isinstance(error, redis.exceptions.NoScriptError):
        return ScriptUnknown(text)
    if isinstance(error, redis.AuthenticationError | redis.exceptions.NoPermissionError):
        return BufferRefused(f"Redis refuses {command} to this user: {text}")
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return BufferUnavailable(f"Redis does not answer {command}: {text}")
    if isinstance(error, redis.exceptions.OutOfMemoryError) or "OOM command" in text:
        return BufferFull(f"Redis is at its memory limit: {text}")
    if isinstance(error, redis.exceptions.ReadOnlyError) or text.startswith(_PASSING):
        return BufferUnavailable(f"Redis cannot serve {command} now: {text}")
    return BufferRefused(f"Redis refuses {command}: {text}")
