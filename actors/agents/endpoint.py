"""The OpenAI-compatible endpoint that agent programs talk to: on loopback, with a key per episode.

Three APIs over one thing, the calls of an episode (`calls.py`). A key is good from `open` to `close`; what comes
without one, or after its episode, is refused. A stream is sent when the whole answer is there: only then is
it known.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import web

from milepost.actors.agents import chat_api, messages_api, responses_api
from milepost.actors.agents.body import mapping, refused
from milepost.actors.agents.calls import Answer, CallRefused, Request

MODEL = "policy"
"""The name of the only model. Whatever a program asks for, it gets this one."""
_MAX_BODY = 64 * 1024 * 1024
_ANCHOR_HEADER = "x-milepost-anchor"
_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class _Api:
    request: Callable[[dict[str, Any], str | None], Request]
    answer: Callable[[Answer, str], dict[str, Any]]
    events: Callable[[Answer, str, Request], Iterator[chat_api.Event]]
    ends_with_done: bool
    """Whether a stream ends with OpenAI's `[DONE]`."""


_APIS = {
    "/v1/chat/completions": _Api(chat_api.request, chat_api.answer, chat_api.events, ends_with_done=True),
    "/v1/responses": _Api(responses_api.request, responses_api.answer, responses_api.events, ends_with_done=False),
    "/v1/messages": _Api(messages_api.request, messages_api.answer, messages_api.events, ends_with_done=False),
}


class Calls(Protocol):
    """Answers what comes with one key; `EpisodeCalls` does."""

    async def answer(self, request: Request) -> Answer:
        """The answer to one call. Raises CallRefused."""
        ...


class Endpoint:
    """One server for all episodes of a worker."""

    def __init__(self, port: int = 0) -> None:
        """`port` to listen on; 0 takes a free one."""
        self._episodes: dict[str, Calls] = {}
        self._runner: web.AppRunner | None = None
        self._port = port
        self._starting = asyncio.Lock()

    @property
    def url(self) -> str:
        """Where it listens, without the `/v1` of OpenAI's clients."""
        return f"http://{_HOST}:{self._port}"

    async def start(self) -> None:
        """Listen on loopback, unless it does. Raises OSError where the port is taken or there is none."""
        async with self._starting:
            if self._runner is None:
                await self._listen()

    async def _listen(self) -> None:
        app = web.Application(client_max_size=_MAX_BODY, middlewares=[_told])
        for path, api in _APIS.items():
            app.router.add_post(path, self._handler(api))
        app.router.add_get("/v1/models", self._models)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, _HOST, self._port).start()
        self._port, self._runner = runner.addresses[0][1], runner

    async def stop(self) -> None:
        """Close the port."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def open(self, calls: Calls) -> str:
        """A key for an episode."""
        key = f"mp-{secrets.token_urlsafe(24)}"
        self._episodes[key] = calls
        return key

    def close(self, key: str) -> None:
        """The episode is over: its key is refused from here on."""
        self._episodes.pop(key, None)

    def _handler(self, api: _Api) -> Callable[[web.Request], Any]:
        async def handle(http: web.Request) -> web.StreamResponse:
            calls = self._calls_of(http)
            request = api.request(await _body(http), http.headers.get(_ANCHOR_HEADER))
            answer = await calls.answer(request)
            if not request.stream:
                return web.json_response(api.answer(answer, MODEL))
            return await _stream(http, api, api.events(answer, MODEL, request))

        return handle

    def _calls_of(self, http: web.Request) -> Calls:
        key = http.headers.get("x-api-key") or http.headers.get("authorization", "").removeprefix("Bearer ")
        calls = self._episodes.get(key)
        if calls is None:
            raise CallRefused(401, "invalid_api_key", "no episode under way has this key")
        return calls

    async def _models(self, http: web.Request) -> web.Response:
        self._calls_of(http)
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "milepost"}
        return web.json_response({"object": "list", "data": [model]})


@web.middleware
async def _told(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """A refusal as clients of all three APIs read it."""
    try:
        return await handler(request)
    except CallRefused as error:
        said = {"message": str(error), "type": "invalid_request_error", "code": error.code, "param": None}
        return web.json_response({"type": "error", "error": said}, status=error.status)


async def _body(http: web.Request) -> dict[str, Any]:
    try:
        return mapping(await http.json(), "the body")
    except (ValueError, RecursionError, LookupError) as error:  # no JSON, or in no known encoding
        raise refused(f"the body is not JSON: {error}") from error


async def _stream(http: web.Request, api: _Api, events: Iterator[chat_api.Event]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(http)
    for name, data in events:
        head = f"event: {name}\n" if name else ""
        await response.write(f"{head}data: {json.dumps(data)}\n\n".encode())
    if api.ends_with_done:
        await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response
