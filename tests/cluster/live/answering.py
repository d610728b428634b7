"""A server on a thread of its own that answers as a test says, through the real endpoint."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.actors.agents.agent_rig import SayingEngine, episode_calls, serving

ROOT = Path(__file__).parents[3]


@contextmanager
def answering(say: Callable[[str], str]) -> Iterator[str]:
    """The base URL; its key is in OPENAI_API_KEY."""
    started: list[str] = []
    ready, loop, over = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with serving(episode_calls(SayingEngine(say))) as (url, key):
            started.extend((url, key))
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", started[1])
        yield f"{started[0]}/v1"
    loop.call_soon_threadsafe(over.set)
    thread.join(30)
    loop.close()
