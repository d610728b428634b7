"""The turns of an ATIF document: which steps a model spoke in, from which state, and what it did there.

Where a step does not say in which state it starts (`extra.anchor`), that is the key that agent programs get in a run: a
hash of the newest tool results, else of what else was said since the last turn. Its action is `extra.action`, else its
tool calls in canonical form, else its message. Turns of sub-agents follow the step that asked for them, and a document
that is continued in a file goes on in it. Steps that are copies of earlier context are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from milepost.actors.agents.lineages import ChatMessage, state_key
from milepost.cluster.workbench.atif import Document, Step, SubagentRef, decode, text_in, text_of
from milepost.envs.messages import AssistantMessage, ToolCall, action_of
from milepost.learner.credit.assignment import INVALID, CreditTurn, escaped
from milepost.learner.credit.interchange import Refused

_END: Final = "end of the episode"
_Embedded = dict[str, tuple[int, Document]]
"""Sub-agents of a document that were not come to yet, by id: place and trajectory."""


@dataclass(slots=True)
class Reading:
    """What is read of one document, and of the files that it refers to."""

    path: Path
    """The file that the document stands in."""
    chain: list[Document] = field(default_factory=list)
    """The document and those that continue it, in order."""
    used: list[Path] = field(default_factory=list)
    """Files that were referred to: they are no trajectories of their own."""
    has_rewards: bool = False
    """Whether any step says what it earned."""

    def turns(self, document: Document) -> list[CreditTurn]:
        """Raises Refused with the field and the reason: a reference that leads nowhere, a value of the wrong type."""
        made = list(self._made(document, "", self.path, [], is_root=True))
        if not made:
            raise Refused("steps", "there is no step of the agent in which a model spoke")
        self.has_rewards = any(number(turn.step.extra, "reward", turn.place) is not None for turn in made)
        later = [*(turn.anchor for turn in made[1:]), _END]
        return [turn.finished(anchor) for turn, anchor in zip(made, later, strict=True)]

    def _made(
        self, document: Document, place: str, path: Path, said: list[ChatMessage], *, is_root: bool = False
    ) -> Iterator[_Made]:
        """The turns of one conversation; `said` is what was said in it since its last turn."""
        if is_root:
            self.chain.append(document)
        embedded = {str(each.trajectory_id): (k, each) for k, each in enumerate(document.subagent_trajectories or ())}
        for k, step in enumerate(document.steps):
            if step.is_copied_context:
                continue
            at = f"{place}steps[{k}]"
            if step.is_turn:
                told = _text(step, "anchor", at)
                yield _Made(at, step, state_key(said) if told is None else told)
                said.clear()
            elif step.source != "agent":
                said.append({"role": step.source, "content": text_of(step.message)})
            for ref in step.references:
                yield from self._delegated(ref, embedded, place, at, path)
            said += [{"role": "tool", "content": text} for text in _results(step)]
        for name in list(embedded):  # that no step refers to
            yield from self._embedded(embedded, name, place, path)
        if document.continued_trajectory_ref is not None:
            name = document.continued_trajectory_ref
            where, goes_on = self._follow(path, name, f"{place}continued_trajectory_ref")
            yield from self._made(goes_on, f"{name}: ", where, said, is_root=is_root)

    def _delegated(self, ref: SubagentRef, embedded: _Embedded, place: str, at: str, path: Path) -> Iterator[_Made]:
        """The turns of a sub-agent, where it is referred to for the first time."""
        if ref.trajectory_id is not None and ref.trajectory_id in embedded:
            yield from self._embedded(embedded, ref.trajectory_id, place, path)
        elif ref.trajectory_path is not None and (path.parent / ref.trajectory_path).resolve() not in self.used:
            where, other = self._follow(path, ref.trajectory_path, f"{at}.observation")
            yield from self._made(other, f"{ref.trajectory_path}: ", where, [])

    def _embedded(self, embedded: _Embedded, name: str, place: str, path: Path) -> Iterator[_Made]:
        k, document = embedded.pop(name)
        yield from self._made(document, f"{place}subagent_trajectories[{k}].", path, [])

    def _follow(self, path: Path, name: str, place: str) -> tuple[Path, Document]:
        """The document in the file `name` beside `path`."""
        target = (path.parent / name).resolve()
        if target in (self.path.resolve(), *self.used):
            raise Refused(place, f"{name} is referred to twice")
        if not target.is_file():
            raise Refused(place, f"there is no file {name} beside {path.name}")
        self.used.append(target)
        try:
            return target, decode(text_in(target))
        except Refused as refused:
            raise Refused(f"{name}: {refused.field}" if refused.field else name, refused.reason) from refused


@dataclass(slots=True)
class _Made:
    """A turn whose end is not known yet."""

    place: str
    step: Step
    anchor: str

    def finished(self, next_anchor: str) -> CreditTurn:
        """The turn, which led to `next_anchor` where it does not say so itself."""
        action, metrics, end = self._action(), self.step.metrics, _text(self.step, "next_anchor", self.place)
        told = (metrics.completion_tokens or len(metrics.completion_token_ids or ())) if metrics else 0
        try:
            return CreditTurn(
                anchor=self.anchor,
                action=INVALID if action is None else escaped(action),
                next_anchor=next_anchor if end is None else end,
                reward=number(self.step.extra, "reward", self.place) or 0.0,
                invalid=action is None,
                num_tokens=max(1, told),
                progress=number(self.step.extra, "progress", self.place),
            )
        except ValueError as error:
            raise Refused(self.place, str(error)) from error

    def _action(self) -> str | None:
        """Canonical; None where the document says that there was no valid one."""
        if "action" in (self.step.extra or {}):
            return _text(self.step, "action", self.place)
        calls = tuple(ToolCall(id="", name=c.function_name, arguments=c.arguments) for c in self.step.tool_calls or ())
        return action_of(AssistantMessage(content=text_of(self.step.message), tool_calls=calls))


def number(extra: dict[str, Any] | None, name: str, place: str) -> float | None:
    """A number among what a producer adds; None where it is not there. Raises Refused for anything else."""
    found = (extra or {}).get(name)
    if found is not None and (isinstance(found, bool) or not isinstance(found, int | float)):
        raise Refused(f"{place}.extra.{name}", f"expected a number, got {type(found).__name__}")
    return None if found is None else float(found)


def _text(step: Step, name: str, place: str) -> str | None:
    found = (step.extra or {}).get(name)
    if found is not None and not isinstance(found, str):
        raise Refused(f"{place}.extra.{name}", f"expected a text, got {type(found).__name__}")
    return found


def _results(step: Step) -> list[str]:
    """What the step's calls came to, in the order of the calls: parallel ones may end in any."""
    if step.observation is None:
        return []
    order = {call.tool_call_id: k for k, call in enumerate(step.tool_calls or ())}
    found = sorted(step.observation.results, key=lambda result: order.get(result.source_call_id or "", len(order)))
    return [text_of(result.content) for result in found]
