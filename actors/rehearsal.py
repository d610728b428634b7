"""One episode without a policy, through the very code that a worker runs: how an environment is judged before a run.

What is said is the environment's own demonstration where it has one, else an action that it says is admissible, else
text from its action space; or what a script says. So a check, the check before a run and the run judge alike. Not
promised: that an environment which bears these responses bears those of a policy.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from milepost.actors.context import Layout
from milepost.actors.engine import Completion
from milepost.actors.episode import run_episode
from milepost.actors.luck import Generators, generators
from milepost.actors.resources import Limits, RolloutResources
from milepost.envs.contract import Demonstrator, Reset, Step
from milepost.envs.messages import Exchange, Said, text_of
from milepost.envs.plain_values import plain_text
from milepost.envs.types import Failure, Task, Trajectory, VersionSpan
from milepost.reward.reward import Reward

_NOISE = 0.5
"""How often a demonstration is random: bad states are to be seen, too."""
_MOST_CHARS = 100
"""Of a response that an action space made up."""
_SAY_WHERE = ("ContractError", "ObservationError", "TemplateError", "RewardError")
"""Errors of our own, whose messages say where they come from."""


class FullLayout(Layout, Protocol):
    """A layout of responses, too; `Dialogue` and `Characters` are."""

    def response(self, text: str) -> list[int]:
        """Ids of a response, closed."""
        ...


class Characters:
    """A layout without a policy: one token per character, one for each end of a turn."""

    appends = True
    _end, _more = 0, 1

    def opening(self, said: Said) -> list[int]:
        """What was said."""
        return [*self._ids(text_of(said)), self._more]

    def continuation(self, said: Said, closed: bool) -> list[int]:
        """The end of the response, unless it is `closed`, and what was said."""
        return [self._end] * (not closed) + self.opening(said)

    def whole(self, first: Said, exchanges: Sequence[Exchange]) -> list[int]:
        """All of that, one after the other."""
        prompt = self.opening(first)
        for exchange in exchanges:
            prompt = prompt + exchange.response_ids + self.continuation(exchange.said, exchange.closed)
        return prompt

    def response(self, text: str) -> list[int]:
        """The text and its end."""
        return [*self._ids(text), self._end]

    def decode(self, ids: list[int]) -> str:
        """The text, without ends."""
        return "".join(chr(i - 2) for i in ids if i > self._more)

    def _ids(self, text: str) -> list[int]:
        return [ord(character) + 2 for character in text]


@dataclass(slots=True, kw_only=True)
class Rehearsal:
    """What one episode showed. While it is played, it is the episode's engine and its observer."""

    layout: FullLayout
    decode: Callable[[list[int]], str]
    script: Sequence[str] | None = None
    """Responses to give in turn; None asks the environment."""
    seed: int = 0
    """Of what demonstrations and action spaces draw."""
    start: Reset | None = None
    steps: list[Step] = field(default_factory=list)
    responses: list[str] = field(default_factory=list)
    """One for each step."""
    result: Trajectory | Failure | None = None
    close_error: BaseException | None = None
    has_closed: threading.Event = field(default_factory=threading.Event)
    luck: tuple[Generators, Generators] = field(default_factory=lambda: ({}, {}))
    """The generators that the environment held after its start, and at the end."""
    spaces: dict[str, Any] = field(default_factory=dict)
    """The environment's `observation_space` and `action_space`; None where there is none."""
    _next: str = ""

    @property
    def complaint(self) -> str:
        """Why the episode could not be finished, in one line that says where; "" if it could."""
        failure = self.result
        if not isinstance(failure, Failure):
            return ""
        says_where = failure.error in _SAY_WHERE or " did not return within " in failure.message
        if says_where or failure.boundary == "infra" or self.was_not_built:
            return failure.message
        method = "reset" if self.start is None else "reward" if failure.boundary == "reward" else "step"
        return f"{method} raised {failure.error}: {failure.message}"

    @property
    def was_not_built(self) -> bool:
        """Whether the path or the constructor failed."""
        failed = self.result
        return self.start is None and isinstance(failed, Failure) and failed.message.startswith("environment ")

    async def generate(self, prompt_ids: list[int]) -> Completion:
        """The next response, in place of an engine's."""
        assert prompt_ids
        ids = self.layout.response(self._next)
        spans = [VersionSpan(version=0, start=0, end=len(ids))]
        return Completion(response_ids=ids, logprobs=[0.0] * len(ids), versions=spans, stopped=True)

    def seen(self, env: Any, returned: Any, seen: Reset | Step) -> None:
        """Write down what came, and choose what to say to it."""
        if isinstance(seen, Reset):
            self.start, self.luck = seen, (generators(env), {})
            self.spaces = {name: getattr(env, name, None) for name in ("observation_space", "action_space")}
        else:
            self.steps.append(seen)
            self.responses.append(self._next)
            self.luck = (self.luck[0], generators(env))
            if seen.terminated or seen.truncated:
                return
        self._next = self._choice(env, dict(returned[-1]))
        self.layout.response(self._next)  # what cannot be laid out raises here, where it is the environment's failure

    def closed(self, error: BaseException | None) -> None:
        """Note how `close` went."""
        self.close_error = error
        self.has_closed.set()

    def _choice(self, env: Any, info: dict[str, Any]) -> str:
        turn = len(self.steps)
        if self.script is not None:
            return self.script[turn] if turn < len(self.script) else ""
        rng = random.Random(f"{self.seed}/{turn}")
        if isinstance(env, Demonstrator):
            said: str = plain_text(env.demonstration(rng, _NOISE), "demonstration")
        elif info.get("admissible_actions"):
            said = plain_text(rng.choice(info["admissible_actions"]), "info['admissible_actions']")
        elif (space := self.spaces["action_space"]) is None:
            said = ""
        else:
            space.seed(self.seed + turn)
            said = str(space.sample())[:_MOST_CHARS]
        return said


async def rehearse(
    rehearsal: Rehearsal, task: Task, *, limits: Limits, index: int = 0, reward: Reward | None = None
) -> Rehearsal:
    """Play `task` once and see its environment closed; nothing that an environment or a reward raises comes out."""
    resources = RolloutResources(
        engine=rehearsal,
        dialogue=rehearsal.layout,
        decode=rehearsal.decode,
        places=threading.Semaphore(),
        limits=limits,
        reward=reward,
        observer=rehearsal,
    )
    rehearsal.result = await run_episode(resources, task=task, group_id="rehearsal", index=index)
    if not resources.hung:
        await asyncio.to_thread(rehearsal.has_closed.wait, limits.env_timeout_s)
    return rehearsal
