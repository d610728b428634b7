"""Parts of an episode that show what passes through them: its environment, its engine, its endpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from milepost.actors.agents.calls import Answer, Request
from milepost.actors.agents.endpoint import Calls, Endpoint
from milepost.actors.agents.lineages import ChatMessage, newest
from milepost.actors.engine import Completion, Engine
from milepost.cluster.live.view import View
from milepost.envs.contract import Reset, Step


@dataclass(slots=True, kw_only=True)
class Onlooker:
    """The observer of an episode of an environment."""

    view: View
    has_closed: threading.Event = field(default_factory=threading.Event)

    def seen(self, env: Any, returned: Any, seen: Reset | Step) -> None:
        """Show what `env` returned."""
        assert env is not None
        assert returned is not None
        self.view.seen(seen)

    def closed(self, error: BaseException | None) -> None:
        """Let those go on that wait for the end."""
        if error is not None:
            self.view.note(f"close raised {type(error).__name__}: {error}")
        self.has_closed.set()


@dataclass(frozen=True, slots=True)
class WatchedEngine:
    """An engine whose completions are shown."""

    engine: Engine
    decode: Callable[[list[int]], str]
    view: View

    async def generate(self, prompt_ids: list[int]) -> Completion:
        """As the engine's."""
        completion = await self.engine.generate(prompt_ids)
        self.view.answered(self.decode(completion.response_ids))
        if not completion.stopped:
            self.view.note("(cut at sampling.max_tokens)")
        return completion


@dataclass(slots=True)
class WatchedCalls:
    """Calls of an agent program that are shown."""

    calls: Calls
    view: View
    _tools: list[Any] = field(default_factory=list)

    async def answer(self, request: Request) -> Answer:
        """As theirs."""
        if request.tools != self._tools:
            self._tools = request.tools
            self.view.tools(request.tools)
        self.view.messages(newest(request.messages))
        answer = await self.calls.answer(request)
        self.view.answered(_in_words(answer.message))
        if answer.finish_reason == "length":
            self.view.note("(cut at sampling.max_tokens)")
        return answer


class WatchedEndpoint(Endpoint):
    """An endpoint whose calls are shown."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view

    def open(self, calls: Calls) -> str:
        """A key for an episode."""
        return super().open(WatchedCalls(calls, self._view))


def _in_words(message: ChatMessage) -> str:
    calls = [call["function"] for call in message.get("tool_calls") or []]
    written = [f"{function['name']} {function['arguments']}" for function in calls]
    return "\n".join(part for part in (message["content"], *written) if part)
