"""What the episodes of one process share: the engine, the token layout, limits, and places for calls into user code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from milepost.actors.context import Layout
from milepost.actors.coroutine_thread import CoroutineThread
from milepost.actors.engine import Completion, Engine, Engines
from milepost.actors.tool_reading import Readers
from milepost.envs.contract import Reset, Step
from milepost.envs.types import Failure, Trajectory, Turn
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


@dataclass(frozen=True, slots=True)
class OpenTurn:
    """A turn under way: what the policy was shown, and what it answered once it has."""

    prompt_ids: list[int]
    completion: Completion | None
    started_s: float = 0.0
    """As in `Turn`."""


class Recorder(Protocol):
    """Is told of every episode that ended. It neither waits nor raises."""

    def ended(self, result: Trajectory | Failure, turns: Sequence[Turn], broke_off: OpenTurn | None) -> None:
        """How an episode ended; of a failed one, the turns it played and the one in which it broke off, if any."""


@dataclass(slots=True, kw_only=True)
class RolloutResources:
    """What episodes in one process share."""

    engine: Engine | Engines
    dialogue: Layout
    decode: Callable[[list[int]], str]
    """Text of sampled tokens, without special tokens."""
    readers: Readers
    """Of responses to environments with tools."""
    places: threading.Semaphore
    """One for each call into user code that may run at a time."""
    limits: Limits
    reward: Reward | None = None
    coroutines: CoroutineThread = field(default_factory=CoroutineThread)
    """Where async rewards run."""
    observer: Observer | None = None
    recorder: Recorder | None = None
    hung: int = 0
    """Calls into user code that did not come back in time."""

    def engine_for_episode(self) -> AbstractContextManager[Engine]:
        """What one episode asks, from its first prompt to its last."""
        return self.engine.for_episode() if isinstance(self.engine, Engines) else nullcontext(self.engine)

    def recorded(
        self, result: Trajectory | Failure, turns: Sequence[Turn], broke_off: OpenTurn | None
    ) -> Trajectory | Failure:
        """`result`, of which the recorder has been told, if there is one."""
        if self.recorder is not None:
            self.recorder.ended(result, turns, broke_off)
        return result
