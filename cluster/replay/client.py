"""Connections to Redis that answer, wait, or say why not.

A patient client repeats a command while Redis is away, until its deadline: the driver's is patient, for whatever it
asks may be repeated and its run outlives a restart of Redis; a worker's is not, for it has something better to do.
Every failure is one of two: waiting may help (`BufferUnavailable`) or not (`BufferRefused`). Nobody who catches
neither of them needs to: either one ends the program with its reason.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from milepost.cluster.base.exits import DependencyLost

logger = logging.getLogger(__name__)
Argument = str | bytes | int | float

BLOCK_S = 2.0
"""Longest time one command may block in the server; the socket waits a little longer than this."""
_SOCKET_TIMEOUT_S = BLOCK_S + 3.0
_RETRIES = 3
_PAUSE_S = 1.0
_SILENT_S = 3.0
"""A wait as long as a restart of Redis takes is not worth a word."""
_PASSING = {"MISCONF", "BUSY", "CLUSTERDOWN", "TRYAGAIN", "READONLY", "LOADING", "MASTERDOWN", "NOREPLICAS"}
"""What Redis answers in a condition that passes: its disk is full, a script runs, a node is away or not the master."""
_CODE = re.compile(r"^(?:.*: -)?([A-Z]+) ", re.DOTALL)
"""Of an error's text. Redis 6.2 wraps what a script meets: `Error running script (...): @user_script: 8: -OOM ...`"""
_BAD_URL = (
    "the Redis URL that buffer.url_env names cannot be read: write redis://USER:PASSWORD@HOST:PORT/0, and special "
    "characters of the password as percent and two hex digits (# is %23, / is %2F)"
)


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

    def __init__(self, connection: AsyncRedis, *, patience_s: float, note: Callable[[str], None]) -> None:
        self.connection = connection
        self._patience_s = patience_s
        self._note = note
        self._is_away = False
        """Whether `note` was told of a wait that has not ended."""

    async def command(self, *words: Argument) -> Any:
        """Run one Redis command, again and again while the client is patient and Redis away.

        Raises BufferFull at the memory limit, BufferUnavailable where Redis does not answer or is in a state that
        passes, BufferRefused for every other refusal, ScriptUnknown for an EVALSHA that must become an EVAL.
        """
        began = time.monotonic()
        while True:
            try:
                answer = await self._once(*words)
            except BufferUnavailable as error:
                waited_s = time.monotonic() - began
                if waited_s + _PAUSE_S > self._patience_s:
                    if not self._patience_s:
                        raise
                    raise BufferUnavailable(f"waited {self._patience_s:g} s for Redis to come back: {error}") from error
                if waited_s > _SILENT_S and not self._is_away:
                    self._is_away = True
                    self._note(f"waiting for Redis, {self._patience_s:g} s at most: {error}")
            else:
                if self._is_away:
                    self._is_away = False
                    self._note("Redis is back")
                return answer
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


def connect(url: str, *, patience_s: float = 0.0, note: Callable[[str], None] = logger.warning) -> Client:
    """Asyncio client for `url`: binary replies, no endless wait, few retries (all our calls can be repeated).

    `patience_s`: how long a command may wait for a Redis that is away; 0 fails at once. `note` is told of a wait that
    lasts, and of its end. Raises BufferRefused for what is no URL, without a piece of it: it may be a piece of the
    password.
    """
    if not _is_url(url):
        raise BufferRefused(_BAD_URL)
    try:
        connection = AsyncRedis.from_url(
            url,
            protocol=2,
            socket_timeout=_SOCKET_TIMEOUT_S,
            socket_connect_timeout=_SOCKET_TIMEOUT_S,
            health_check_interval=15,
            retry=AsyncRetry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), _RETRIES),
        )
    except (ValueError, TypeError):
        raise BufferRefused(_BAD_URL) from None
    return Client(connection, patience_s=patience_s, note=note)


def _is_url(url: str) -> bool:
    """Whether it reads as it was meant: what an unescaped `#`, `/` or `?` of a password cut off holds the `@`."""
    try:
        parts = urlsplit(url)
        return bool(
            parts.scheme in ("redis", "rediss", "unix")
            and "@" not in parts.path + parts.query
            and not parts.fragment
            and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        return False


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


async def check_server(client: Client, *, maxmemory_bytes: int) -> None:
    """Refuse a server that can lose what it acknowledged, or is too small. Reads INFO only.

    `maxmemory_bytes`: what a full buffer needs. Raises BufferRefused for Redis before 6.2, an evicting memory policy, a
    lower memory limit, persistence without an append-only file, or a user who may not ask; BufferUnavailable where the
    server does not answer.
    """
    try:
        info = await client.connection.info()
    except redis.AuthenticationError as error:
        raise BufferRefused(
            f"Redis refuses the credentials ({error}): check user and password of the buffer"
        ) from error
    except redis.RedisError as error:
        raise _translated(error, "INFO") from error
    version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    if version < (6, 2):
        raise BufferRefused(f"Redis is version {info['redis_version']}, the buffer needs 6.2 or newer: upgrade it")
    if info["maxmemory_policy"] != "noeviction":
        raise BufferRefused(
            f"Redis has maxmemory-policy {info['maxmemory_policy']}, and would delete the buffer when memory is short:"
            " run CONFIG SET maxmemory-policy noeviction"
        )
    if 0 < int(info["maxmemory"]) < maxmemory_bytes:
        raise BufferRefused(
            f"Redis has maxmemory {int(info['maxmemory'])}, a buffer of buffer.max_bytes needs {maxmemory_bytes}: "
            f"run CONFIG SET maxmemory {maxmemory_bytes}, or lower buffer.max_bytes"
        )
    if not int(info["aof_enabled"]):
        raise BufferRefused("Redis keeps no append-only file and would lose the buffer: run CONFIG SET appendonly yes")


async def serves_strangers(url: str) -> bool:
    """Whether somebody without credentials is served at the address of `url`."""
    stranger = connect(url).connection
    stranger.connection_pool.connection_kwargs.update(username=None, password=None)
    try:
        return bool(await stranger.ping())
    except redis.RedisError:
        return False
    finally:
        await stranger.aclose()


def _cancellations() -> int:
    """How often the task at hand was asked to end."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0


def _translated(error: redis.RedisError, command: str) -> Exception:
    text = str(error)
    found = _CODE.match(text)
    code = found[1] if found else ""
    if isinstance(error, redis.exceptions.NoScriptError) or code == "NOSCRIPT":
        return ScriptUnknown(text)
    if isinstance(error, redis.AuthenticationError | redis.exceptions.NoPermissionError) or code == "NOPERM":
        return BufferRefused(f"Redis refuses {command} to this user: {text}")
    if isinstance(error, redis.exceptions.OutOfMemoryError) or code == "OOM" or "OOM command" in text:
        return BufferFull(f"Redis is at its memory limit: {text}")
    if isinstance(error, redis.exceptions.ReadOnlyError | redis.exceptions.MasterDownError) or code in _PASSING:
        return BufferUnavailable(f"Redis cannot serve {command} now: {text}")
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return BufferUnavailable(f"Redis does not answer {command}: {text}")
    return BufferRefused(f"Redis refuses {command}: {text}")
