"""One episode without a policy, through the very code that a worker runs: how an environment is judged before a run.

What is said is the environment's own demonstration where it has one, else a call of one of its tools, an action that
it says is admissible, or text from its action space; or what a script says. So a check, the check before a run and the
run judge alike. Not promised: that an environment which bears these responses bears those of a policy.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from milepost.actors.checks.luck import Generators, generators
from milepost.actors.checks.made_up import made_up_message
from milepost.actors.context import Layout
from milepost.actors.engine import Completion
from milepost.actors.episode import run_episode
from milepost.actors.resources import Limits, RolloutResources
from milepost.actors.tool_reading import ToolReaders
from milepost.envs.contract import Demonstrator, Reset, Step
from milepost.envs.messages import AssistantMessage, Exchange, Said, ToolSchema, action_of, text_of
from milepost.envs.plain_values import plain_text
from milepost.envs.types import Failure, Task, Trajectory, VersionSpan
from milepost.reward.reward import Reward

_NOISE = 0.5
"""How often a demonstration is random: bad states are to be seen, too."""
_PARSER_OF_CHARACTERS = "hermes"
_MOST_CHARS = 100
"""Of a response that an action space made up."""
_SHOWN_TURNS = 6
_SHOWN_CHARS = 600
_SHOWN_LINES = 12
"""Of one text in a transcript."""
_SAY_WHERE = ("ContractError", "ObservationError", "TemplateError", "RewardError", "ToolParserError")
"""Errors of our own, whose messages say where they come from."""


Response = str | AssistantMessage


class FullLayout(Layout, Protocol):
    """A layout of responses, too; `Dialogue` and `Characters` are."""

    def with_tools(self, tools: Sequence[ToolSchema]) -> FullLayout:
        """The layout for an environment that declares `tools`."""
        ...

    def response(self, said: Response) -> list[int]:
        """Ids of a response, closed."""
        ...

    def spoken(self, message: AssistantMessage) -> str:
        """The response that is rendered as `message`."""
        ...

    @property
    def control_tokens(self) -> list[str]:
        """Texts that no message may hold."""
        ...


class Characters:
    """A layout without a policy: one token per character, one for each end of a turn. Calls are those of Hermes."""

    appends = True
    control_tokens: Final[list[str]] = []
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

    def with_tools(self, tools: Sequence[ToolSchema]) -> Characters:
        """The same: nobody reads what is laid out here."""
        assert tools
        return self

    def response(self, said: Response) -> list[int]:
        """The text and its end."""
        return [*self._ids(said if isinstance(said, str) else self.spoken(said)), self._end]

    def spoken(self, message: AssistantMessage) -> str:
        """The content, and every call as JSON between tags."""
        calls = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
        written = [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls]
        return "\n".join(part for part in (message.content, *written) if part)

    def decode(self, ids: list[int], **_: bool) -> str:
        """The text, without ends."""
        return "".join(chr(i - 2) for i in ids if i > self._more)

    def encode(self, text: str, **_: bool) -> list[int]:
        """One token per character."""
        return self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return [ord(character) + 2 for character in text]


@dataclass(slots=True, kw_only=True)
class Rehearsal:
    """What one episode showed. While it is played, it is the episode's engine and its observer."""

    layout: FullLayout
    decode: Callable[[list[int]], str]
    readers: ToolReaders | None = None
    """Of responses to environments with tools; None for those in `Characters`."""
    script: Sequence[Response] | None = None
    """Responses to give in turn; None asks the environment."""
    seed: int = 0
    """Of what demonstrations and action spaces draw."""
    start: Reset | None = None
    steps: list[Step] = field(default_factory=list)
    responses: list[Response] = field(default_factory=list)
    """One for each step."""
    result: Trajectory | Failure | None = None
    close_error: BaseException | None = None
    has_closed: threading.Event = field(default_factory=threading.Event)
    luck: tuple[Generators, Generators] = field(default_factory=lambda: ({}, {}))
    """The generators that the environment held after its start, and at the end."""
    spaces: dict[str, Any] = field(default_factory=dict)
    """The environment's `observation_space` and `action_space`; None where there is none."""
    _next: Response = ""
    _ids: list[int] = field(default_factory=list)

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

    @property
    def anchors(self) -> list[str]:
        """Of the states in which a turn began."""
        return [seen.anchor for seen in (self.start, *self.steps) if seen is not None][: len(self.steps)]

    def transcript(self) -> list[str]:
        """The episode in lines for people: its first and last turns, long texts cut, no control characters."""
        if self.start is None:
            return []
        lines = [*_shown("observation", self.start.observation), *_shown("anchor", self.start.anchor)]
        for turn, (response, step) in enumerate(zip(self.responses, self.steps, strict=True)):
            if _SHOWN_TURNS // 2 <= turn < len(self.steps) - _SHOWN_TURNS // 2:
                left_out = len(self.steps) - 2 * (_SHOWN_TURNS // 2)
                lines += [f"... {left_out} turns left out"] * (turn == _SHOWN_TURNS // 2)
                continue
            lines += [
                f"turn {turn}",
                *_shown("response", response if isinstance(response, str) else action_of(response)),
            ]
            lines += _shown("action", "(no valid one)" if step.action is None else step.action)
            lines += [*_shown("observation", step.observation), *_shown("anchor", step.anchor)]
            ends = [name for name in ("terminated", "truncated", "success") if getattr(step, name)]
            lines.append(f"  {'reward':<12} {step.reward:g}" + "".join(f", {name}" for name in ends))
        return lines

    async def generate(self, prompt_ids: list[int]) -> Completion:
        """The next response, in place of an engine's."""
        assert prompt_ids
        spans = [VersionSpan(version=0, start=0, end=len(self._ids))]
        return Completion(response_ids=self._ids, logprobs=[0.0] * len(self._ids), versions=spans, stopped=True)

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
        tools = self.start.tools if self.start else ()
        layout = self.layout.with_tools(tools) if tools else self.layout
        self._ids = layout.response(self._next)  # what cannot be laid out raises here, as the environment's failure

    def closed(self, error: BaseException | None) -> None:
        """Note how `close` went."""
        self.close_error = error
        self.has_closed.set()

    def _choice(self, env: Any, info: dict[str, Any]) -> Response:
        turn = len(self.steps)
        if self.script is not None:
            return self.script[turn] if turn < len(self.script) else ""
        rng = random.Random(f"{self.seed}/{turn}")
        if isinstance(env, Demonstrator):
            shown: object = env.demonstration(rng, _NOISE)
            said: Response = shown if isinstance(shown, AssistantMessage) else plain_text(shown, "demonstration")
        elif self.start and self.start.tools:
            said = made_up_message(rng, self.start.tools)
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
        readers=rehearsal.readers or ToolReaders(Characters(), Characters(), tool_parser=_PARSER_OF_CHARACTERS),
        places=threading.Semaphore(),
        limits=limits,
        reward=reward,
        observer=rehearsal,
    )
    rehearsal.result = await run_episode(resources, task=task, group_id="rehearsal", index=index)
    if not resources.hung:
        await asyncio.to_thread(rehearsal.has_closed.wait, limits.env_timeout_s)
    return rehearsal


def parting(one: Rehearsal, other: Rehearsal) -> int | None:
    """The first turn in which two episodes differ in anything but their anchors."""
    steps = [[msgspec.structs.replace(step, anchor="") for step in rehearsal.steps] for rehearsal in (one, other)]
    differ = [turn for turn, (a, b) in enumerate(zip(*steps, strict=False)) if a != b]
    if not differ and len(one.steps) != len(other.steps):
        return min(len(one.steps), len(other.steps))
    return differ[0] if differ else None


def _shown(name: str, text: str) -> list[str]:
    """`text` under its name, as much of it as a person looks at."""
    kept = "\n".join(text[:_SHOWN_CHARS].splitlines()[:_SHOWN_LINES])
    cut = f" ... ({len(text)} characters)" if len(kept) < len(text.rstrip()) else ""
    plain = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in kept) + cut
    return [f"  {'' if row else name:<12} {line}" for row, line in enumerate(plain.split("\n"))]
