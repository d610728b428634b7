"""An episode whose answers are said by a person, an expert or a server, and not sampled by an engine of ours.

It is played by the code of a run all the same: what is said goes through a layout of characters and comes back out of
it. So nothing heavy is loaded, and an environment meets what it meets in a run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from milepost.actors.agents.calls import Answer, CallRefused, Request
from milepost.actors.agents.lineages import ChatMessage, chat_message
from milepost.actors.checks.rehearsal import Characters
from milepost.actors.engine import Completion
from milepost.cluster.base.exits import Exit
from milepost.cluster.live.partners import Partner
from milepost.cluster.live.watched import Onlooker
from milepost.envs.contract import Reset, Step
from milepost.envs.messages import AssistantMessage, ToolSchema, messages_of
from milepost.envs.types import VersionSpan


@dataclass(slots=True, kw_only=True)
class SpokenEpisode(Onlooker):
    """Engine, observer and reader of an episode."""

    partner: Partner | None
    """None: the environment's own expert."""
    system_prompt: str
    layout: Characters = field(default_factory=Characters)
    _messages: list[ChatMessage] = field(default_factory=list)
    _tools: tuple[ToolSchema, ...] = ()
    _said: AssistantMessage = field(default_factory=AssistantMessage)
    _turn: int = 0

    def seen(self, env: Any, returned: Any, seen: Reset | Step) -> None:
        """Show it, keep it for the conversation, and ask the expert."""
        Onlooker.seen(self, env, returned, seen)
        if isinstance(seen, Reset):
            self._tools = seen.tools
            self._messages = [{"role": "system", "content": self.system_prompt}] * bool(self.system_prompt)
        for message in messages_of(seen.said):
            told = {"role": message.role, "content": message.content, "tool_call_id": message.tool_call_id}
            self._messages.append({key: value for key, value in told.items() if value or key == "content"})
        over = isinstance(seen, Step) and (seen.terminated or seen.truncated)
        if self.partner is None and not over:
            said = env.demonstration(random.Random(self._turn), 0.0)
            self._said = said if isinstance(said, AssistantMessage) else AssistantMessage(content=said)
            self._turn += 1

    async def generate(self, prompt_ids: list[int]) -> Completion:
        """What is said next, as characters."""
        assert prompt_ids
        if self.partner is not None:
            self._said = await self.partner.answer(self._messages, self._tools)
        self.view.answered(self.layout.spoken(self._said))
        self._messages.append(chat_message(self._said))
        ids = self.layout.response(self._said)
        spans = [VersionSpan(version=0, start=0, end=len(ids))]
        return Completion(response_ids=ids, logprobs=[0.0] * len(ids), versions=spans, stopped=True)

    def reader(self, tools: Sequence[ToolSchema]) -> tuple[Characters, SpokenEpisode]:
        """The same: nothing needs parsing that was never written."""
        return self.layout.with_tools(tools), self

    def read(self, response_ids: list[int], closed: bool, calls_before: int) -> AssistantMessage:
        """What was said."""
        assert response_ids
        assert closed
        assert calls_before >= 0
        return self._said


@dataclass(slots=True)
class SpokenCalls:
    """Answers the calls of an agent program."""

    partner: Partner
    lost: Exit | None = None
    """Why there is no partner any more."""

    async def answer(self, request: Request) -> Answer:
        """What the partner says; nobody counts its tokens. Raises CallRefused where it says nothing."""
        try:
            said = await self.partner.answer(request.messages, request.tools)
        except Exit as lost:
            self.lost = lost
            raise CallRefused(400, "no_answer", str(lost)) from lost
        reason = "tool_calls" if said.tool_calls else "stop"
        return Answer(message=chat_message(said), finish_reason=reason, prompt_tokens=0, completion_tokens=0)
