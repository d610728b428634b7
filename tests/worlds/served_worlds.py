"""What tests of worlds behind a server share: the server, 20 episodes of it, and what their policy read."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from milepost.actors.engine import Engine
from milepost.actors.episode import run_episode
from milepost.envs.dialogue import Dialogue
from milepost.envs.types import Failure, Task, Trajectory
from tests.actors.episode_rig import ScriptedEngine, resources

EPISODES = 20


@contextmanager
def serving(app: Any) -> Iterator[tuple[str, Callable[[], None]]]:
    """The URL of a web application on loopback, and what ends its server, with every connection, before the block."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})

    def end() -> None:
        server.should_exit = True
        thread.join(30)

    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", end
    finally:
        end()
        listening.close()


async def episodes(
    layout: Dialogue, path: str, options: dict[str, Any], *, engine: Engine, count: int = EPISODES, **limits: float
) -> list[Trajectory | Failure]:
    """`count` tasks, each with a seed of its own, played side by side."""
    bounds = {"env_timeout_s": 60, "episode_timeout_s": 120, "max_turns": 6} | limits
    async with resources(layout, engine=engine, **bounds) as here:
        tasks = [Task(env=path, seed=seed, split="train", options=options) for seed in range(count)]
        return list(await asyncio.gather(*(run_episode(here, task=task, group_id="g", index=0) for task in tasks)))


def by_script(layout: Dialogue, say: Callable[[str], str]) -> ScriptedEngine:
    """A policy that answers the text of a prompt with what `say` says."""
    tokenizer: Any = layout._tokenizer
    return ScriptedEngine(layout, lambda ids: say(tokenizer.decode(ids)))


def prompts(layout: Dialogue, trajectory: Trajectory) -> list[str]:
    """What the policy read at each turn."""
    tokenizer: Any = layout._tokenizer
    return [tokenizer.decode(turn.prompt_ids) for turn in trajectory.turns]
