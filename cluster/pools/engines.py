"""The inference engines as the episodes of a worker see them: which are in rotation, and which one an episode keeps.

Not promised: that a request survives its engine; it is sampled again on another one, within its deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError, RayError

from milepost.actors.engine import Completion, Engine, EngineError
from milepost.cluster.hosts.ray_start import last_line

_RETRY_S = 0.2


@dataclass(frozen=True, slots=True)
class Rotation:
    """The engines that answer requests, and whether one more is being started."""

    handles: list[Any]
    is_growing: bool


class RoutedEngines:
    """The `Engines` that a worker's episodes see: each keeps the one in rotation with the fewest episodes at its first
    prompt, and moves only where that one dies or leaves the rotation.
    """

    def __init__(self, rotation: Rotation, *, worker: int, request_timeout_s: float, start_timeout_s: float) -> None:
        """`worker` is the number of the one whose episodes these are: of engines with equally few of its episodes,
        each worker begins with another one, for it does not see what the others ask.
        """
        self.rotation = rotation
        self._worker = worker
        self.request_timeout_s = request_timeout_s
        self.start_timeout_s = start_timeout_s
        self._lost: set[Any] = set()
        """Engines that died before the rotation said so."""
        self._episodes: set[EpisodeEngine] = set()

    def set_rotation(self, rotation: Rotation) -> None:
        """The engines now in rotation."""
        self.rotation = rotation
        self._lost.clear()

    @contextlib.contextmanager
    def for_episode(self) -> Iterator[Engine]:
        """An engine for one episode, which counts as that engine's until the block ends."""
        episode = EpisodeEngine(self)
        self._episodes.add(episode)
        try:
            yield episode
        finally:
            self._episodes.remove(episode)

    def died(self, handle: Any) -> None:
        """Ask `handle` last until the rotation is set anew."""
        self._lost.add(handle)

    def keeps(self, handle: Any) -> bool:
        """Whether an episode of `handle` is to stay there."""
        return handle in self.rotation.handles and handle not in self._lost

    def least_loaded(self) -> Any:
        """Handle of the engine in rotation that has the fewest episodes; None where there is none."""
        load, handles = Counter(episode.handle for episode in self._episodes), self.rotation.handles
        first = self._worker % max(len(handles), 1)
        in_turn = handles[first:] + handles[:first]
        return min(in_turn, key=lambda handle: (handle in self._lost, load[handle]), default=None)


class EpisodeEngine:
    """The `Engine` of one episode. `handle` is the one it asks, None before its first prompt."""

    def __init__(self, engines: RoutedEngines) -> None:
        self._engines = engines
        self.handle: Any = None

    async def generate(self, prompt_ids: list[int]) -> Completion:
        """Sample one response; on another engine if its engine dies, or on the one that is being started.

        Its deadline counts from when an engine is there to ask; for one it waits `engine.start_timeout_s` at most.

        Raises:
            EngineError: at the deadline, or the engine refused the request.
        """
        engines, began = self._engines, time.monotonic()
        latest = began + engines.start_timeout_s + engines.request_timeout_s
        deadline = began + engines.request_timeout_s
        cause = "no engine is in rotation"
        while (left := deadline - time.monotonic()) > 0:
            if not engines.keeps(self.handle):
                self.handle = engines.least_loaded()
            if self.handle is None:
                if engines.rotation.is_growing:
                    deadline = min(time.monotonic() + engines.request_timeout_s, latest)
                await asyncio.sleep(_RETRY_S)
                continue
            asked = self.handle  # calls of one agent run side by side
            try:
                async with asyncio.timeout(left):
                    completion: Completion = await asked.generate.remote(prompt_ids)
                return completion
            except RayActorError as error:
                cause = last_line(error)
                engines.died(asked)
                deadline = min(time.monotonic() + engines.request_timeout_s, latest)
                await asyncio.sleep(_RETRY_S)
            except TimeoutError:
                cause = "the engine did not answer"
            except RayError as error:
                raise EngineError(last_line(error)) from error
        raise EngineError(f"no completion within {time.monotonic() - began:.0f} s: {cause}")
