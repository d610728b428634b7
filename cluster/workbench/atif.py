"""The trajectory format ATIF, v1.0 to v1.8, as it is read: what Harbor and others write of an agent's work.

The types hold the format's own rules: an unknown field, a missing one, a wrong type or a reference that leads nowhere
is refused with its place. Media are kept by their path, and never opened. Source: `harbor.models.trajectories` 0.26.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from milepost.learner.credit.interchange import MAX_LINE_BYTES, Refused, strictly

_AGENT_ONLY: Final = ("model_name", "reasoning_effort", "reasoning_content", "tool_calls", "metrics")
Extra = dict[str, Any] | None


class _Strict(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    pass


class Media(_Strict):
    """A file that a message shows."""

    media_type: str
    path: str
    duration_sec: Annotated[float, msgspec.Meta(ge=0)] | None = None


class ContentPart(_Strict):
    """A part of a message: text, or a file by its path."""

    type: Literal["text", "image", "audio"]
    text: str | None = None
    source: Media | None = None

    def __post_init__(self) -> None:
        if (self.type == "text") != (self.text is not None) or (self.type == "text") == (self.source is not None):
            raise ValueError(f"a part of type {self.type} needs {'text' if self.type == 'text' else 'source'} alone")


Content = str | list[ContentPart]


class ToolCall(_Strict):
    """A call that the agent made."""

    tool_call_id: str
    function_name: str
    arguments: dict[str, Any]
    extra: Extra = None


class SubagentRef(_Strict):
    """Where the trajectory of a sub-agent is: in the document by its id, or in a file."""

    trajectory_id: str | None = None
    session_id: str | None = None
    trajectory_path: str | None = None
    extra: Extra = None

    def __post_init__(self) -> None:
        if self.trajectory_id is None and self.trajectory_path is None:
            raise ValueError("a sub-agent's reference needs trajectory_id or trajectory_path")


class ObservationResult(_Strict):
    """What one call came to."""

    source_call_id: str | None = None
    content: Content | None = None
    subagent_trajectory_ref: list[SubagentRef] | None = None
    extra: Extra = None


class Observation(_Strict):
    """What the world answered."""

    results: list[ObservationResult]


class Metrics(_Strict):
    """Of the model's calls in one step."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    cost_usd: float | None = None
    prompt_token_ids: list[int] | None = None
    completion_token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    extra: Extra = None


class Step(_Strict):
    """What one party said or did."""

    step_id: int
    source: Literal["system", "user", "agent"]
    message: Content
    timestamp: str | None = None
    model_name: str | None = None
    reasoning_effort: str | float | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    observation: Observation | None = None
    metrics: Metrics | None = None
    is_copied_context: bool | None = None
    llm_call_count: Annotated[int, msgspec.Meta(ge=0)] | None = None
    extra: Extra = None

    def __post_init__(self) -> None:
        told = [name for name in _AGENT_ONLY if getattr(self, name) is not None]
        if self.source != "agent" and told:
            raise ValueError(f"{told[0]} is for steps of the agent, and the source is {self.source}")
        if self.timestamp is not None:
            datetime.fromisoformat(self.timestamp)
        if self.llm_call_count == 0 and (self.metrics is not None or self.reasoning_content is not None):
            raise ValueError("a step with llm_call_count 0 has neither metrics nor reasoning_content")
        calls = {call.tool_call_id for call in self.tool_calls or ()}
        asked = [result.source_call_id for result in self.observation.results] if self.observation else []
        if lost := [name for name in asked if name is not None and name not in calls]:
            raise ValueError(f"a result answers the call {lost[0]!r}, which the step does not make")

    @property
    def references(self) -> list[SubagentRef]:
        """The sub-agents whose work the step's results came from."""
        results = self.observation.results if self.observation else ()
        return [ref for result in results for ref in result.subagent_trajectory_ref or ()]

    @property
    def is_turn(self) -> bool:
        """Whether a model spoke here: it is no fixed dispatch."""
        return self.source == "agent" and self.llm_call_count != 0


class Agent(_Strict):
    """Who acted."""

    name: str
    version: str
    model_name: str | None = None
    tool_definitions: list[dict[str, Any]] | None = None
    extra: Extra = None


class FinalMetrics(_Strict):
    """Of the whole trajectory."""

    total_prompt_tokens: int | None = None
    total_completion_tokens: int | None = None
    total_cached_tokens: int | None = None
    total_cost_usd: float | None = None
    total_steps: int | None = None
    extra: Extra = None


class Document(_Strict):
    """One trajectory."""

    schema_version: Literal[
        "ATIF-v1.0", "ATIF-v1.1", "ATIF-v1.2", "ATIF-v1.3", "ATIF-v1.4", "ATIF-v1.5", "ATIF-v1.6", "ATIF-v1.7",
        "ATIF-v1.8",
    ]  # fmt: skip
    agent: Agent
    steps: Annotated[list[Step], msgspec.Meta(min_length=1)]
    session_id: str | None = None
    trajectory_id: str | None = None
    notes: str | None = None
    final_metrics: FinalMetrics | None = None
    continued_trajectory_ref: str | None = None
    extra: Extra = None
    subagent_trajectories: list[Document] | None = None

    def __post_init__(self) -> None:
        for k, step in enumerate(self.steps):
            if step.step_id != k + 1:
                raise ValueError(f"steps[{k}].step_id is {step.step_id}; steps are numbered from 1, without gaps")
        names = [each.trajectory_id for each in self.subagent_trajectories or ()]
        if None in names or len(set(names)) != len(names):
            raise ValueError("each of subagent_trajectories needs a trajectory_id of its own")
        for k, step in enumerate(self.steps):
            for ref in step.references:
                if ref.trajectory_path is None and ref.trajectory_id not in names:
                    raise ValueError(f"steps[{k}].observation: no sub-agent has the id {ref.trajectory_id!r}")


_DECODER = msgspec.json.Decoder(Document)


def decode(text: bytes | None) -> Document:
    """The document that `text` spells; None is one that was too long to be read. Raises Refused."""
    if text is None:
        raise Refused("", f"longer than {MAX_LINE_BYTES >> 20} MiB; write one trajectory per file or line")
    return strictly(_DECODER, text)


def text_in(path: Path) -> bytes | None:
    """What a file of one document holds; None where it is longer than `MAX_LINE_BYTES`."""
    return path.read_bytes() if path.stat().st_size <= MAX_LINE_BYTES else None


def text_of(content: Content | None) -> str:
    """What a message says; a file is named by its path."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text or f"[{part.type} {part.source.path if part.source else ''}]" for part in content)
