"""Runs an agent program for one episode: a function in this process, or a command in one of its own.

Both get the task (`task_of`) and an endpoint with a key, and end with a reward: a number, or an object with `reward`
and maybe `success`. A function runs on a thread of its own under an event loop of its own, so one that blocks holds up
no other episode. A command and everything in its process group ends with its episode. Nothing here bounds time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
import signal
import ssl
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryFile
from typing import IO, Any, Protocol

from milepost.actors.agents.config import AgentConfig
from milepost.actors.episode_thread import EpisodeThread, first_line
from milepost.envs.dotted_path import DottedPathError, resolve
from milepost.envs.plain_values import ContractError, plain_number
from milepost.envs.types import Task, check_rewards

_MAX_LINE = 1_000_000
_MOST_PRINTED = 64 * 1024 * 1024
_LOOK_EVERY_S = 0.05
_LOOKS_AFTER_THE_KILL = 40
_LOOPBACK = "127.0.0.1"


class AgentPathError(ValueError):
    """An agent program cannot be loaded."""


class AgentFailed(Exception):
    """An agent program ended without a result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What an agent program earned."""

    reward: float
    success: bool | None
    """None where it does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a program reaches its endpoint."""

    url: str
    key: str

    def variables(self, known: Mapping[str, str]) -> dict[str, str]:
        """The environment variables by which clients find it, past any proxy that the `known` ones name."""
        return past_proxies(known) | {
            "OPENAI_AGENTS_DISABLE_TRACING": "1",  # else the Agents SDK sends what is said to OpenAI, with our key
            "OPENAI_BASE_URL": f"{self.url}/v1",
            "OPENAI_API_KEY": self.key,
            "ANTHROPIC_BASE_URL": self.url,
            "ANTHROPIC_API_KEY": self.key,
        }


def past_proxies(known: Mapping[str, str]) -> dict[str, str]:
    """The environment variables by which clients reach loopback directly, whatever proxy the `known` ones name."""
    named = {name: [*known.get(name, "").split(","), _LOOPBACK] for name in ("NO_PROXY", "no_proxy")}
    return {name: ",".join(dict.fromkeys(filter(None, hosts))) for name, hosts in named.items()}


class Program(Protocol):
    """A program that can play."""

    async def play(self, task: dict[str, Any], access: Access) -> object:
        """What it returned or printed last. Raises what it raises; ends it where it is cancelled."""
        ...


def task_of(task: Task, *, group_id: str, index: int, episode_seed: int) -> dict[str, Any]:
    """The task as a program gets it: equal `seed` and `options` are one task, `episode_seed` is the episode's own."""
    return {
        "seed": task.seed,
        "split": task.split,
        "options": dict(task.options),
        "group_id": group_id,
        "index": index,
        "episode_seed": episode_seed,
    }


def result_of(value: object) -> Result:
    """What a program's last word means; raises ContractError."""
    success = None
    if isinstance(value, dict):
        if "reward" not in value:
            raise ContractError(
                f"the agent's result has no 'reward', but {sorted(key for key in value if isinstance(key, str))}"
            )
        success = value.get("success")
        if success is not None and not isinstance(success, bool):
            raise ContractError(f"the agent's 'success' must be a bool, found {type(success).__name__}")
        value = value["reward"]
    reward = plain_number(value, "the agent's reward")
    try:
        check_rewards([reward])
    except ValueError as error:
        raise ContractError(f"the agent: {error}") from error
    return Result(reward=reward, success=success)


def check_program(config: AgentConfig) -> None:
    """Whether the program of a configuration is there; raises AgentPathError."""
    if not config.command:
        load_program(config, lambda _: None)
    elif shutil.which(config.command[0]) is None:
        raise AgentPathError(f"agent.command: there is no program {config.command[0]!r}; give its path or install it")


def load_program(config: AgentConfig, left_behind: Callable[[Future[Any]], None]) -> Program:
    """The program of a configuration; raises AgentPathError. `left_behind` hears of calls that are given up."""
    if config.command:
        return CommandProgram(config.command)
    try:
        found = resolve(config.path)
    except DottedPathError as error:
        raise AgentPathError(f"agent {error}") from error
    if not asyncio.iscoroutinefunction(found):
        raise AgentPathError(f"agent.path = {config.path!r} is {found!r}, not an 'async def run(task, client)'")
    os.environ.update(past_proxies(os.environ))  # for clients that it makes itself
    return FunctionProgram(found, left_behind)


@dataclass(slots=True)
class FunctionProgram:
    """An `async def run(task, client)`; the client is an `openai.AsyncOpenAI`."""

    function: Callable[[dict[str, Any], Any], Awaitable[object]]
    left_behind: Callable[[Future[Any]], None]
    """Told of a call that was cancelled: it may never come back."""

    async def play(self, task: dict[str, Any], access: Access) -> object:
        """Call it on a thread of its own."""
        thread, begun = EpisodeThread(), _Begun()
        job = thread.submit(partial(self._run, task, access, begun))
        try:
            return await asyncio.shield(asyncio.wrap_future(job))
        except asyncio.CancelledError:
            begun.cancel()
            self.left_behind(job)
            raise
        finally:
            thread.end()

    def _run(self, task: dict[str, Any], access: Access, begun: _Begun) -> object:
        try:
            return asyncio.run(self._call(task, access, begun))
        except BaseException as error:  # SystemExit and CancelledError mean something else to asyncio than to user code
            raise AgentFailed(f"{type(error).__name__}: {first_line(error)}") from error

    async def _call(self, task: dict[str, Any], access: Access, begun: _Begun) -> object:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient  # heavy: only where an agent is played

        begun.here()
        # No proxy stands before loopback. To load certificates anew would cost every episode tens of milliseconds.
        direct = DefaultAsyncHttpxClient(trust_env=False, verify=_certificates())
        async with AsyncOpenAI(base_url=f"{access.url}/v1", api_key=access.key, http_client=direct) as client:
            return await self.function(task, client)


@functools.cache
def _certificates() -> ssl.SSLContext:
    return ssl.create_default_context()


@dataclass(slots=True)
class _Begun:
    loop: asyncio.AbstractEventLoop | None = None
    task: asyncio.Task[Any] | None = None

    def here(self) -> None:
        self.loop, self.task = asyncio.get_running_loop(), asyncio.current_task()

    def cancel(self) -> None:
        if self.loop is not None and self.task is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self.loop.call_soon_threadsafe(self.task.cancel)


@dataclass(frozen=True, slots=True)
class CommandProgram:
    """A command, started once per episode with the task as JSON on its standard input."""

    command: tuple[str, ...]

    async def play(self, task: dict[str, Any], access: Access) -> object:
        """Start it, and read the last line that it prints."""
        # Files and no pipes: what it leaves running may hold them open for as long as it likes.
        with TemporaryFile() as told, TemporaryFile() as said, TemporaryFile() as complaints:
            told.write(json.dumps(task).encode() + b"\n")
            told.seek(0)
            status = await self._run((told, said, complaints), access)
            if status != 0:
                last = _last_line(complaints) or "it said nothing on its standard error"
                raise AgentFailed(f"{self.command[0]} ended with exit code {status}: {last[:200]}")
            line = _last_line(said)
        if not line:
            raise AgentFailed(f"{self.command[0]} printed nothing; the last line that it prints is the reward")
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise AgentFailed(f"the last line of {self.command[0]} is no JSON: {line[:100]!r}") from error

    async def _run(self, files: tuple[IO[bytes], IO[bytes], IO[bytes]], access: Access) -> int:
        stdin, stdout, stderr = files
        try:
            process = subprocess.Popen(
                self.command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                env={**os.environ, **access.variables(os.environ)},
            )
        except OSError as error:
            raise AgentFailed(f"{self.command[0]} cannot be started: {error.strerror}") from error
        try:
            while process.poll() is None:
                if sum(os.fstat(file.fileno()).st_size for file in (stdout, stderr)) > _MOST_PRINTED:
                    raise AgentFailed(f"{self.command[0]} printed more than {_MOST_PRINTED} bytes")
                await asyncio.sleep(_LOOK_EVERY_S)
            return process.returncode
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it is gone, or somebody else's
                os.killpg(process.pid, signal.SIGKILL)
            for _ in range(_LOOKS_AFTER_THE_KILL):
                if process.poll() is not None:
                    break
                await asyncio.sleep(_LOOK_EVERY_S)


def _last_line(file: IO[bytes]) -> str:
    """The last line that is not empty; of a longer one than `_MAX_LINE`, its end."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - _MAX_LINE))
    lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")
