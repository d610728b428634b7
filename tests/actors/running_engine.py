"""A real engine on an event loop of its own thread, as the session fixture `engine` gives it to tests."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from milepost.actors.engine import EngineConfig, SamplingConfig

if TYPE_CHECKING:  # vLLM is loaded by the first test that needs an engine
    from milepost.actors.vllm import VLLMEngine

T = TypeVar("T")


@dataclass(frozen=True)
class RunningEngine:
    engine: VLLMEngine
    loop: asyncio.AbstractEventLoop
    config: EngineConfig
    sampling: SamplingConfig

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float = 60) -> T:
        """Await `coroutine` on the engine's loop, which is where its requests live."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout_s)

    async def shutdown(self) -> None:
        """End vLLM's processes, and see its tasks on this loop to their end."""
        self.engine.shutdown()
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=10)
