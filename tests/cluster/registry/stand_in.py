"""A server that starts in no time and takes vLLM's place where only the switching is looked at.

    python stand_in.py --model MODEL ... --uds SOCKET ...

MODEL/config.json says what it does: `{"broken": true}` ends it at its start, `{"mute": true}` lets it answer nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from aiohttp import web

MODEL = Path(sys.argv[2])
SOCKET = sys.argv[sys.argv.index("--uds") + 1]
SAID = json.loads((MODEL / "config.json").read_text())


async def complete(request: web.Request) -> web.StreamResponse:
    """Two pieces, the second one when a file is there that the client names."""
    asked = await request.json()
    if SAID.get("mute"):
        return web.json_response({"error": "this model cannot run"}, status=500)
    response = web.StreamResponse(headers={"x-asked": str(len(asked["prompt"]))})
    await response.prepare(request)
    await response.write(b"begun ")
    while "until" in asked and not Path(asked["until"]).exists():
        await asyncio.sleep(0.02)
    await response.write((MODEL / "model.safetensors").read_bytes())
    return response


async def die(_: web.Request) -> web.Response:
    """As an engine that ran out of memory."""
    os._exit(1)


async def serve() -> None:
    """Until it is ended."""
    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    app.router.add_post("/die", die)
    app.router.add_get("/health", lambda _: answer(""))
    app.router.add_get("/metrics", lambda _: answer("vllm:requests 1.0\n"))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, SOCKET).start()
    await asyncio.Event().wait()


async def answer(text: str) -> web.Response:
    return web.Response(text=text)


if __name__ == "__main__":
    print(" ".join(sys.argv[1:]), flush=True)
    if SAID.get("broken"):
        sys.exit("ValueError: no room for this model")
    asyncio.run(serve())
