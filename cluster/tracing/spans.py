"""From a recorded episode to the spans that tell of it: the episode, its turns, in each the calls of model and tools.

Pure: no clock, no wire. Names are those of OpenTelemetry's semantic conventions for generative AI, of OpenInference
where these have none, and `milepost.*` for what only a training run knows. Not promised: when a tool began, for the
record holds the seconds of the whole step; nor spans of tools that an agent program calls by itself: nobody tells.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from milepost.cluster.trajectories.calls import calls_of
from milepost.cluster.trajectories.recording import EVALUATION, RecordedTurn, Recording
from milepost.cluster.trajectories.table import Judged
from milepost.reward.evaluators.episode import Call

Value = str | int | float | list[str]
Attributes = Mapping[str, Value]
_LONGEST_ERROR: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """An episode whose row was made."""

    run_id: str
    number: int
    """Of its row."""
    recording: Recording
    judged: Judged
    texts: Sequence[tuple[str, str]]
    """What was shown and what was answered in each turn."""

    @property
    def key(self) -> str:
        """What names the episode for good. Those of evaluations have numbers that recur: there it is the row's."""
        recording = self.recording
        place = f"row-{self.number}" if recording.group_id == EVALUATION else str(recording.index)
        return f"{self.run_id}/{recording.group_id}/{place}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanTold:
    """One span. `parent` is the place of its parent among the spans of the episode; None for the first."""

    name: str
    parent: int | None
    start_s: float
    end_s: float
    """Unix time, seconds."""
    attributes: Attributes
    evaluations: tuple[Attributes, ...] = ()
    error: str = ""
    """Why it failed; empty where it did not."""


def spans_of(episode: Traced, text_chars: int) -> list[SpanTold]:
    """The spans of an episode, parents before their children; of each text at most `text_chars` characters."""
    recording = episode.recording
    end = recording.started_at + (recording.seconds or 0.0)
    below: list[SpanTold] = []
    for t, prompt_tokens in enumerate(prompt_lengths(recording.turns)):
        below += _Turn(episode, t, prompt_tokens, end, text_chars).spans(place=1 + len(below))
    return [_root(episode, max([end, *(span.end_s for span in below)])), *below]


def prompt_lengths(turns: Sequence[RecordedTurn]) -> Iterator[int]:
    """Tokens of each turn's whole prompt."""
    before = 0
    for turn in turns:
        prompt = (before if turn.continues else 0) + len(turn.prompt_ids)
        yield prompt
        before = prompt + len(turn.response_ids)


def _root(episode: Traced, end_s: float) -> SpanTold:
    recording, judged = episode.recording, episode.judged
    name = recording.task.env_name or recording.task.env
    rewards = [turn.reward for turn in recording.turns if turn.reward is not None]
    is_over = recording.outcome is not None
    return SpanTold(
        name=f"invoke_agent {name}",
        parent=None,
        start_s=recording.started_at,
        end_s=end_s,
        attributes=_there(
            {
                "gen_ai.operation.name": "invoke_agent",
                "openinference.span.kind": "AGENT",
                "gen_ai.agent.name": name,
                **_everywhere(episode, "episode"),
                "milepost.fate": judged.fate,
                "milepost.reason": judged.reason,
                "milepost.episode": episode.number,
                "milepost.credit": None if judged.credit is None else judged.credit.trajectory,
                **_policy(recording.turns),
            }
        ),
        evaluations=(
            _evaluation("reward", sum(rewards)),
            _evaluation("success", float(recording.outcome == "success"), recording.outcome),
        )
        if is_over
        else (),
        error=recording.error[:_LONGEST_ERROR],
    )


@dataclass(frozen=True, slots=True)
class _Turn:
    """Turn `t` of an episode, and the calls in it."""

    episode: Traced
    t: int
    prompt_tokens: int
    episode_end_s: float
    text_chars: int

    def spans(self, place: int) -> Iterator[SpanTold]:
        """The turn's own span, which gets this `place` among the episode's, and those of its calls."""
        turn = self.told
        start = self.episode.recording.started_at + turn.started_s
        answered = self.episode_end_s if turn.generate_s is None else start + turn.generate_s
        end = answered + (turn.env_s or 0.0)
        yield self._itself(start, end)
        yield self._chat(place, start, answered)
        if turn.tool is not None:
            for call in calls_of(turn.action, turn.tool.get("calls")):
                yield self._tool(call, place, answered, end)

    @property
    def told(self) -> RecordedTurn:
        """The turn as it was recorded."""
        return self.episode.recording.turns[self.t]

    def _itself(self, start_s: float, end_s: float) -> SpanTold:
        turn, credit = self.told, self.episode.judged.credit
        advantages = None if credit is None else credit.advantages
        return SpanTold(
            name="turn",
            parent=0,
            start_s=start_s,
            end_s=end_s,
            attributes=_there(
                {
                    "openinference.span.kind": "CHAIN",
                    **self._everywhere(f"turn {self.t}"),
                    "graph.node.parent_id": self._before(),
                    "milepost.anchor": turn.anchor,
                    "milepost.credit": None if credit is None else credit.turns[self.t],
                    "milepost.advantage": None if advantages is None else advantages[self.t],
                    **_policy([turn]),
                }
            ),
            evaluations=() if turn.reward is None else (_evaluation("reward", turn.reward),),
            error="" if turn.reward is not None else self.episode.recording.error[:_LONGEST_ERROR],
        )

    def _chat(self, place: int, start_s: float, end_s: float) -> SpanTold:
        turn, sampled = self.told, len(self.told.response_ids)
        finish = None if turn.stopped is None else "stop" if turn.stopped else "length"
        return SpanTold(
            name=f"chat {self.episode.run_id}",
            parent=place,
            start_s=start_s,
            end_s=end_s,
            attributes=_there(
                {
                    "gen_ai.operation.name": "chat",
                    "openinference.span.kind": "LLM",
                    "gen_ai.provider.name": "vllm",
                    "gen_ai.request.model": self.episode.run_id,
                    "llm.model_name": self.episode.run_id,
                    "gen_ai.response.finish_reasons": None if finish is None else [finish],
                    **self._everywhere(f"turn {self.t} chat"),
                    "graph.node.parent_id": f"turn {self.t}",
                    **_policy([turn]),
                    **_tokens(self.prompt_tokens, sampled),
                    **self._texts(finish),
                }
            ),
            error="" if sampled else self.episode.recording.error[:_LONGEST_ERROR],
        )

    def _tool(self, call: Call, place: int, start_s: float, end_s: float) -> SpanTold:
        return SpanTold(
            name=f"execute_tool {call.name}",
            parent=place,
            start_s=start_s,
            end_s=end_s,
            attributes=_there(
                {
                    "gen_ai.operation.name": "execute_tool",
                    "openinference.span.kind": "TOOL",
                    "gen_ai.tool.name": call.name,
                    "tool.name": call.name,
                    "gen_ai.tool.type": "function",
                    "gen_ai.tool.call.arguments": call.arguments[: self.text_chars] or None,
                    **self._everywhere(f"turn {self.t} {call.name}"),
                    "graph.node.parent_id": f"turn {self.t}",
                }
            ),
            error="" if call.ok else "the call failed" if call.known else "there is no such tool",
        )

    def _everywhere(self, node: str) -> dict[str, Value | None]:
        return {**_everywhere(self.episode, node), "agent.trajectory.step": self.t}

    def _before(self) -> str:
        """The node that led to this turn: the turn before it in its lineage, or the one from which that turned away."""
        lineage, parent = self.told.lineage, self.told.parent_lineage
        earlier = [(k, turn.lineage) for k, turn in enumerate(self.episode.recording.turns[: self.t])]
        own = [k for k, its in earlier if its == lineage] or [k for k, its in earlier if its == parent]
        return f"turn {own[-1]}" if own else "episode"

    def _texts(self, finish: str | None) -> dict[str, Value | None]:
        if not self.text_chars:
            return {}
        shown, said = (text[: self.text_chars] for text in self.episode.texts[self.t])
        asked = [{"role": "user", "parts": [{"type": "text", "content": shown}]}]
        answer = {"role": "assistant", "parts": [{"type": "text", "content": said}], "finish_reason": finish}
        return {
            "input.value": shown,
            "output.value": said,
            "gen_ai.input.messages": json.dumps(asked, ensure_ascii=False),
            "gen_ai.output.messages": json.dumps([answer], ensure_ascii=False) if said else None,
        }


def _everywhere(episode: Traced, node: str) -> dict[str, Value | None]:
    """What every span of an episode tells, so that one of them is enough to search by."""
    return {
        "gen_ai.conversation.id": episode.key,
        "session.id": episode.key,
        "graph.node.id": node,
        "milepost.run": episode.run_id,
        "milepost.group": episode.recording.group_id,
    }


def _policy(turns: Sequence[RecordedTurn]) -> dict[str, Value | None]:
    """The newest version that sampled any of their tokens."""
    return {"milepost.policy_version": max((span.version for turn in turns for span in turn.versions), default=None)}


def _tokens(read: int, sampled: int) -> dict[str, Value | None]:
    """For both conventions; on calls of the model alone, for viewers such as Phoenix add up what a tree says."""
    return {
        "gen_ai.usage.input_tokens": read,
        "gen_ai.usage.output_tokens": sampled,
        "llm.token_count.prompt": read,
        "llm.token_count.completion": sampled,
        "llm.token_count.total": read + sampled,
    }


def _evaluation(name: str, score: float, label: str | None = None) -> Attributes:
    return _there(
        {
            "gen_ai.evaluation.name": name,
            "gen_ai.evaluation.score.value": score,
            "gen_ai.evaluation.score.label": label,
        }
    )


def _there(attributes: Mapping[str, Value | None]) -> Attributes:
    """Without those that nothing is known of."""
    return {name: value for name, value in attributes.items() if value not in (None, "")}
