"""What the episodes of one process share: the engine, the token layout, limits, and places for calls into user code."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from milepost.actors.context import Layout
from milepost.actors.engine import Engine
from milepost.envs.contract import Reset, Step
from milepost.reward.reward import Reward


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long an episode may go on."""

    max_turns: int
    env_timeout_s: float
    episode_timeout_s: float
    max_prompt_tokens: int
    """A longer prompt ends the episode as truncated: the engine has no room for an answer."""
    max_observation_chars: int
    """A longer observation is a failure of its environment."""
    window_turns: int = 0


class Observer(Protocol):
    """Looks on from the episode's thread: how a check sees more of an environment than a trajectory tells.

    What it raises counts as raised by the environment.
    """

    def seen(self, env: Any, returned: Any, seen: Reset | Step) -> None:
        """`env` has returned `returned`, which means `seen`."""

    def closed(self, error: BaseException | None) -> None:
        """The episode is over and `close` has returned or raised; called where there was no environment as well."""


@dataclass(slots=True, kw_only=True)
class RolloutResources:
    """What episodes in one process share."""

    engine: Engine
    dialogue: Layout
    decode: Callable[[list[int]], str]
    """Text of sampled tokens, without special tokens."""
    places: threading.Semaphore
    """One for each call into user code that may run at a time."""
    limits: Limits
    reward: Reward | None = None
    observer: Observer | None = None
    hung: int = 0
    """Calls into user code that did not come back in time."""

    def count_if_hung(self, job: Future[Any]) -> None:
        """Count a call that nobody waits for any more, once a call's time is over."""

        def count() -> None:
            self.hung += job.running()

        asyncio.get_running_loop().call_later(self.limits.env_timeout_s, count)
