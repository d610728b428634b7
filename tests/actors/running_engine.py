"""A real engine on an event loop of its own thread, as the session fixture `engine` gives it to tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from milepost.actors.engine import EngineConfig, SamplingConfig, environment
from milepost.envs.dialogue import Dialogue

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


@contextmanager
def running_engine(
    policy: Path, dialogue: Dialogue, config: EngineConfig, sampling: SamplingConfig
) -> Iterator[RunningEngine]:
    """An engine that serves version 0 of `policy`, ended afterwards."""
    from milepost.actors.vllm import VLLMEngine

    async def make() -> VLLMEngine:
        return VLLMEngine(policy, config, sampling, version=0, stop_token_ids=dialogue.stop_token_ids, seed=0)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="engine", daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(config).items():
            patch.setenv(name, value)
        running = RunningEngine(
            asyncio.run_coroutine_threadsafe(make(), loop).result(config.start_timeout_s), loop, config, sampling
        )
    running.run(running.engine.start(), timeout_s=config.start_timeout_s)
    yield running
    running.run(running.shutdown())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=30)
    loop.close()
