"""One `vllm serve` child on one version: its start, the requests it answers, its end.

It listens on a Unix socket in a private folder, so no port is guessed and nobody else reaches it. It ends with this
process, also where that is killed. What it writes goes to a log.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import aiohttp
from aiohttp import web
from yarl import URL

from milepost.actors.engine import EngineConfig, environment
from milepost.cluster.base.children import end_with_parent

MODEL: Final = "policy"
"""What clients call the model, whichever version serves."""
VERSION_HEADER: Final = "x-milepost-version"
# What `vllm serve` starts. That command itself wants a package called vllm, and the CPU build is called otherwise.
_PROGRAM = (sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model")
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding"}
    | {"upgrade", "host", "date", "server", "content-length"}
)
"""Headers of one connection; lengths are those of what is sent on."""
_SILENCE_S = 600.0
"""A server that sends nothing for so long has given a request up: as long as OpenAI's client waits."""
_CONNECT_S, _PROBE_S, _POLL_S = 10.0, 10.0, 0.2
_TERM_S, _KILL_S = 20.0, 10.0


class NotStarted(Exception):
    """The version cannot be served; one line says why."""


class ModelServer:
    """`start` it, `forward` to it, `stop` it, on the main thread: the child ends with the thread that made it."""

    def __init__(self, version: int, arguments: Sequence[str], *, socket: Path, log: Path) -> None:
        """`arguments` are those of `vllm serve`, the model's folder first."""
        self.version = version
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._arguments, self._socket, self._log = arguments, socket, log
        self._process: asyncio.subprocess.Process | None = None
        # A connection is used once: one that vLLM is about to close would lose the request that is sent on it.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(path=str(socket), force_close=True, limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S),
            auto_decompress=False,
        )

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.returncode is None

    async def start(self, timeout_s: float) -> Self:
        """Return once it has answered a completion. Raises NotStarted; it is stopped then."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._spawn()
                while not await self._is_healthy():
                    if not self.is_alive:
                        raise NotStarted(f"vLLM ended at its start: {self._last_line()}; {self._log} has all of it")
                    await asyncio.sleep(_POLL_S)
                await self._try_out()
        except BaseException as error:
            await self.stop()
            if isinstance(error, TimeoutError):
                raise NotStarted(f"vLLM did not serve within {timeout_s:g} s; see {self._log}") from error
            raise
        return self

    async def forward(self, request: web.Request, body: bytes) -> web.StreamResponse:
        """Answer as vLLM does, piece by piece as it comes. Raises aiohttp.ClientError and TimeoutError."""
        self.in_flight += 1
        self._idle.clear()
        try:
            url = URL(f"http://{MODEL}{request.raw_path}", encoded=True)
            headers = [(name, value) for name, value in request.headers.items() if _passes(name)]
            async with self._session.request(
                request.method, url, headers=headers, data=body or None, allow_redirects=False
            ) as answer:
                response = web.StreamResponse(status=answer.status, reason=answer.reason)
                response.headers.extend([(name, value) for name, value in answer.headers.items() if _passes(name)])
                response.content_length = answer.content_length
                response.headers[VERSION_HEADER] = str(self.version)
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
                return response
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def metrics(self) -> str:
        """Its own, as Prometheus reads them. Raises aiohttp.ClientError and TimeoutError."""
        async with asyncio.timeout(_PROBE_S), self._session.get(f"http://{MODEL}/metrics") as answer:
            return await answer.text()

    async def finished(self, timeout_s: float) -> bool:
        """Whether all its requests came to an end within this time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        return not self.in_flight

    async def stop(self) -> None:
        """End it and its children; after a grace they are killed. A second call does nothing."""
        if self._process is not None:
            if self.is_alive:
                self._process.terminate()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TERM_S):
                        await self._process.wait()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # it leads a group of its own, in which its engine runs
            async with asyncio.timeout(_KILL_S):
                await self._process.wait()
            self._process = None
            self._socket.unlink(missing_ok=True)
        await self._session.close()  # last: who still reads from it is told by the process's end, and by nothing else

    async def _spawn(self) -> None:
        with self._log.open("ab") as log:  # what an earlier one of this version wrote may tell why it ended
            self._process = await asyncio.create_subprocess_exec(
                *(*_PROGRAM, *self._arguments),
                *("--uds", str(self._socket), "--served-model-name", MODEL, "--uvicorn-log-level", "warning"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                env=environment(EngineConfig()) | os.environ,
                start_new_session=True,  # Ctrl-C is for this program, which ends its children in order
                preexec_fn=end_with_parent,
            )

    async def _is_healthy(self) -> bool:
        try:
            async with asyncio.timeout(_PROBE_S), self._session.get(f"http://{MODEL}/health") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError):
            return False

    async def _try_out(self) -> None:
        """Have it sample a token: the first one waits for what is compiled, and a model may load that cannot run."""
        asked = {"model": MODEL, "prompt": "a", "max_tokens": 1}
        try:
            async with self._session.post(f"http://{MODEL}/v1/completions", json=asked) as answer:
                if answer.status != 200:
                    raise NotStarted(f"vLLM does not answer a completion: {_short(await answer.text())}")
        except aiohttp.ClientError as error:
            raise NotStarted(f"vLLM ended at its first completion: {self._last_line()}; see {self._log}") from error

    def _last_line(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return _short(lines[-1]) if lines else "it wrote nothing"


def _short(text: str) -> str:
    return " ".join(text.split())[:300]


def _passes(header: str) -> bool:
    return header.lower() not in _HOP_BY_HOP
