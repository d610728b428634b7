"""From a response to a step of the environment: as text, or taken apart where the environment has tools.

A call that cannot be read is no action: the environment is not asked, its state stays, and the policy reads why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from milepost.actors.tool_reading import Reader, ToolLayout, ToolReaders, UnreadableCall
from milepost.envs.contract import Reset, Step, observe_step
from milepost.envs.messages import action_of

_REFUSED = "That tool call cannot be read: {}. Nothing was done."


@dataclass(slots=True)
class Acting:
    """What the responses of one episode do to its environment."""

    decode: Callable[[list[int]], str]
    """Text of sampled tokens, without special tokens."""
    reader: Reader | None = None
    """Where the environment has tools."""
    state: Reset | Step | None = None
    """As last seen."""
    calls: int = 0
    """Tool calls so far."""

    def step(self, env: Any, response_ids: list[int], stopped: bool) -> tuple[object, Step]:
        """What `env` returns for a response, which ended by itself if `stopped`, and what that means.

        Raises what it raises, and `ContractError`.
        """
        returned, self.state = self._step(env, response_ids, stopped)
        return returned, self.state

    def _step(self, env: Any, response_ids: list[int], stopped: bool) -> tuple[object, Step]:
        if self.reader is None:
            text = self.decode(response_ids)
            returned = env.step(text)
            return returned, observe_step(returned, text)
        try:
            message = self.reader.read(response_ids, stopped, self.calls)
        except UnreadableCall as error:
            returned = self._nothing_done(error)
            return returned, observe_step(returned, "")
        self.calls += len(message.tool_calls)
        returned = env.step(message)
        return returned, observe_step(returned, action_of(message))

    def _nothing_done(self, error: UnreadableCall) -> object:
        """As an environment would return it, in the state that was."""
        said = [{"role": "tool", "content": _REFUSED.format(error), "tool_call_id": f"call{self.calls:05d}"}]
        info: dict[str, Any] = {"action_valid": False}
        if self.state is not None:
            info["anchor"] = self.state.anchor
            info["progress"] = self.state.progress if isinstance(self.state, Step) else 0.0  # as credit takes a start
        self.calls += 1
        return said, 0.0, False, False, info


def begin_tools(readers: ToolReaders, reset: Reset) -> tuple[ToolLayout, Callable[[Any, list[int], bool], Step]]:
    """The layout that tells of the tools declared at `reset`, and what becomes of the responses of that episode.

    Raises as `ToolReaders.reader` does.
    """
    layout, reader = readers.reader(reset.tools)
    acting = Acting(str, reader, reset)  # nothing is decoded where calls are read

    def act(env: Any, response_ids: list[int], stopped: bool) -> Step:
        return acting.step(env, response_ids, stopped)[1]

    return layout, act
