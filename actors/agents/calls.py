"""The calls of one episode: each becomes a turn, with the tokens that were sampled for it.

An agent program asks as often as it likes, also several times at once and in conversations of its own; here its calls
are placed in lineages, sampled, and kept in the order in which they began. The state a call starts in (its anchor) is
what the program says it is, else what its newest tool results say; the state it leads to is the one in which the
episode's next call starts. So calls of parallel sub-agents are read as one walk, in that order.

Not promised: that a program which asks for another temperature gets it. All samples come from the run's own
distribution, for their log-probs are trained on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from milepost.actors.agents.lineages import ChatMessage, Lineages, Place, chat_message, newest, state_key
from milepost.actors.engine import Completion, Engine, EngineError
from milepost.actors.stopwatch import Stopwatch
from milepost.actors.tool_reading import ToolParserError
from milepost.envs.chat_template import TemplateError
from milepost.envs.dialogue import ObservationError
from milepost.envs.messages import AssistantMessage, ToolSchema, action_of, read_tools
from milepost.envs.plain_values import ContractError
from milepost.envs.types import Turn
from milepost.reward.reward import TurnText

CONTEXT_FULL = "context_length_exceeded"
"""Why a call is refused whose prompt leaves no room for an answer; clients know the word."""
_END = "end of the episode"
"""The state that the last call leads to."""


class CallRefused(Exception):
    """A request that gets no answer. `code` says why in a word, as an OpenAI error does; `status` is HTTP's."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What an agent program asks for, whichever of the APIs it speaks."""

    messages: list[ChatMessage]
    tools: list[dict[str, Any]] = field(default_factory=list)
    stream: bool = False
    stream_usage: bool = False
    """Whether a stream is to end with what the call used."""
    anchor: str | None = None
    """The state as the program names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the policy said."""

    message: ChatMessage
    """The assistant's message, with `content` and maybe `tool_calls` and `reasoning_content`."""
    finish_reason: str
    """stop, tool_calls or length."""
    prompt_tokens: int
    completion_tokens: int


Read = Callable[[Completion, Sequence[ToolSchema], int], tuple[AssistantMessage, bool]]
"""What was sampled, the tools that were offered, the number of calls before -> what was said, and whether it could be
read."""


@dataclass(slots=True)
class _Made:
    began: float
    anchor: str
    place: Place
    completion: Completion
    action: str | None
    seen: str
    said: str
    generate_s: float


@dataclass(slots=True, kw_only=True)
class EpisodeCalls:
    """What the calls of one episode share."""

    engine: Engine
    lineages: Lineages
    read: Read
    decode: Callable[[list[int]], str]
    """Text of sampled tokens, without special tokens."""
    max_calls: int
    max_prompt_tokens: int
    max_tokens: int
    """Of all answers together; 0: no bound."""
    watch: Stopwatch = field(default_factory=Stopwatch)
    """Of the episode."""
    cut_by: str = ""
    """The code of the limit for which a call was refused, if none was answered since."""
    engine_error: EngineError | None = None
    """The last call's, where it failed in the engine."""
    _made: list[_Made] = field(default_factory=list)
    _asked: int = 0
    _tool_calls: int = 0
    _laying_out: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def answer(self, request: Request) -> Answer:
        """Sample one answer.

        Raises CallRefused where the episode's limits or the request itself do not allow one, or the engine has none.
        """
        began = time.monotonic()
        self._require_budget()
        self._asked += 1
        place = None
        try:
            tools = read_tools(request.tools)
            place = await self._place(request.messages, tools)
            completion = await self._sample(place)
            said, is_valid = await asyncio.to_thread(self.read, completion, tools, self._tool_calls)
        except BaseException as error:
            self._asked -= 1
            if place is not None:
                self.lineages.withdrawn(place)
            if isinstance(error, ToolParserError | ContractError | ObservationError | TemplateError):
                raise CallRefused(400, "invalid_request", str(error)) from error
            raise
        self.cut_by = ""
        self._tool_calls += len(said.tool_calls)
        message = chat_message(said)
        self.lineages.answered(place, message, response_ids=completion.response_ids, stopped=completion.stopped)
        self._made.append(
            _Made(
                began=began,
                anchor=state_key(request.messages) if request.anchor is None else request.anchor,
                place=place,
                completion=completion,
                action=action_of(said) if is_valid else None,
                seen="\n".join(message["content"] for message in newest(request.messages)),
                said=self.decode(completion.response_ids),
                generate_s=time.monotonic() - began,
            )
        )
        return Answer(
            message=message,
            finish_reason=_finish_reason(message, completion),
            prompt_tokens=len(place.prompt_ids),
            completion_tokens=len(completion.response_ids),
        )

    def turns(self, reward: float) -> list[Turn]:
        """The calls so far as turns, in the order in which they began; the last one has the reward."""
        made = self._in_order()
        anchors = [*(call.anchor for call in made[1:]), _END][: len(made)]
        return [
            Turn(
                prompt_ids=call.place.prompt_ids,
                response_ids=call.completion.response_ids,
                logprobs=call.completion.logprobs,
                versions=call.completion.versions,
                anchor=call.anchor,
                next_anchor=next_anchor,
                action=call.action,
                reward=reward if k == len(made) - 1 else 0.0,
                started_s=self.watch.seconds_at(call.began),
                generate_s=call.generate_s,
                stopped=call.completion.stopped,
                lineage=call.place.lineage,
                parent_lineage=call.place.parent,
            )
            for k, (call, next_anchor) in enumerate(zip(made, anchors, strict=True))
        ]

    @property
    def count(self) -> int:
        """Calls that were answered."""
        return len(self._made)

    def _require_budget(self) -> None:
        """Raises CallRefused where the episode has used up its calls or its tokens."""
        sampled = sum(len(call.completion.response_ids) for call in self._made)
        if self._asked >= self.max_calls:
            raise self._cut("turn_limit", f"the episode has made actors.max_turns = {self.max_calls} calls")
        if 0 < self.max_tokens <= sampled:
            raise self._cut("token_limit", f"the episode has sampled agent.max_tokens = {self.max_tokens} tokens")

    def _cut(self, code: str, message: str) -> CallRefused:
        self.cut_by = code
        return CallRefused(400, code, message)

    def texts(self) -> list[TurnText]:
        """What was said in each of `turns`; the observation after a call is what the next one was shown."""
        made = self._in_order()
        later = [*(call.seen for call in made[1:]), ""][: len(made)]
        return [
            TurnText(observation=call.seen, response=call.said, next_observation=seen)
            for call, seen in zip(made, later, strict=True)
        ]

    def _in_order(self) -> list[_Made]:
        return sorted(self._made, key=lambda call: call.began)

    async def _place(self, messages: Sequence[ChatMessage], tools: Sequence[ToolSchema]) -> Place:
        async with self._laying_out:
            laying_out = asyncio.ensure_future(asyncio.to_thread(self.lineages.place, messages, tools))
            try:
                place = await asyncio.shield(laying_out)
            except asyncio.CancelledError:  # the client has gone: nobody else may touch the lineages before it is done
                self.lineages.withdrawn(await laying_out)
                raise
        if len(place.prompt_ids) > self.max_prompt_tokens:
            self.lineages.withdrawn(place)
            raise self._cut(
                CONTEXT_FULL,
                f"the messages have {len(place.prompt_ids)} tokens, the maximum context length leaves room for "
                f"{self.max_prompt_tokens}",
            )
        return place

    async def _sample(self, place: Place) -> Completion:
        try:
            completion = await self.engine.generate(place.prompt_ids)
        except EngineError as error:
            self.engine_error = error
            raise CallRefused(503, "engine_unavailable", str(error)) from error
        self.engine_error = None
        return completion


def _finish_reason(message: ChatMessage, completion: Completion) -> str:
    if message.get("tool_calls"):
        return "tool_calls"
    return "stop" if completion.stopped else "length"
