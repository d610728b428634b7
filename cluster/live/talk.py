"""A conversation with a policy: in the terminal, or served to other programs. Nothing of it is recorded.

In the terminal it is one episode without an end, exact to the token: what was sampled is never encoded again. Served,
every request is laid out anew as it comes, so many clients may have conversations of any kind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from milepost.actors.agents.calls import Answer, CallRefused, Request
from milepost.actors.agents.endpoint import Endpoint
from milepost.actors.agents.lineages import ChatMessage
from milepost.actors.agents.program import Access
from milepost.cluster.base.exits import ConfigError
from milepost.cluster.live.own_engine import OwnEngine, started
from milepost.cluster.live.plan import PolicySettings
from milepost.cluster.live.terminal import Terminal

_RESET = "/reset"


async def chat(policy: Path, settings: PolicySettings, terminal: Terminal, say: Callable[[str], None]) -> None:
    """Answer the lines of `terminal` until it ends. Raises ConfigError, DependencyLost, and what it raises then."""
    async with started(policy, settings) as own:
        say(f"say something; {_RESET} begins anew, Ctrl-D ends")
        calls, messages = own.calls(), list[ChatMessage]()
        while True:
            line = await terminal.ask("you> ")
            if line.strip() == _RESET:
                calls, messages = own.calls(), []
            elif line.strip():
                asked: ChatMessage = {"role": "user", "content": line}
                try:
                    answer = await calls.answer(Request(messages=[*messages, asked]))
                except CallRefused as refused:
                    say(f"no answer: {refused}; {_RESET} begins anew\n")
                    continue
                messages += [asked, answer.message]
                say(f"{answer.message['content']}{' ...' * (answer.finish_reason == 'length')}\n")


async def serve(policy: Path, settings: PolicySettings, port: int, say: Callable[[str], None]) -> None:
    """Serve until cancelled. Raises ConfigError, DependencyLost."""
    async with started(policy, settings) as own:
        endpoint = Endpoint(port)
        try:
            await endpoint.start()
        except OSError as error:
            raise ConfigError(f"talk --port {port}: {error.strerror}; give another one, or leave it out") from error
        try:
            access = Access(url=endpoint.url, key=endpoint.open(ServedCalls(own)))
            told = access.variables({}).items()
            say("\n".join(f"export {name}={value}" for name, value in told if name.isupper() and name != "NO_PROXY"))
            await asyncio.Event().wait()
        finally:
            await endpoint.stop()


@dataclass(frozen=True, slots=True)
class ServedCalls:
    """Answers every request by itself."""

    own: OwnEngine

    async def answer(self, request: Request) -> Answer:
        """What the policy says."""
        return await self.own.calls().answer(request)
