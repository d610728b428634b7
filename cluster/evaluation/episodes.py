"""Recorded episodes as evaluators see them, and episodes that were just played as they are recorded.

One way for both: a suite's episodes become the rows that a run stores, and what evaluators are given is read from such
rows. So an episode that is read from its Parquet file later gets the same scores.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from milepost.cluster.trajectories.calls import calls_of
from milepost.cluster.trajectories.parts import Parts
from milepost.cluster.trajectories.reader import Episode as Recorded
from milepost.cluster.trajectories.recording import of_trajectory
from milepost.cluster.trajectories.table import EPISODES, TURNS, Judged, episode_row, turn_row
from milepost.cluster.trajectories.text import turn_texts
from milepost.envs.types import Trajectory
from milepost.reward.evaluators.episode import Episode, Step

_NO_BOUND = 2**62
_CONTROL_TOKEN = re.compile(r"<\|[^|<>]*\|>")
_EVALUATED = Judged(fate="evaluation")


def record(trajectories: Sequence[Trajectory], folder: Path, policy: Path) -> list[Recorded]:
    """Write episodes into the Parquet files of `folder`, which gets made; they are returned as a reader would.

    `policy` is the folder whose tokenizer they were played with. Raises OSError where the disk refuses.
    """
    from transformers import AutoTokenizer  # heavy front door: nobody else here needs it

    tokenizer: Any = AutoTokenizer.from_pretrained(policy, trust_remote_code=False)
    parts = Parts(folder, max_bytes=_NO_BOUND)
    recorded = []
    for trajectory in trajectories:
        recording, number = of_trajectory(trajectory), parts.next_number
        texts = turn_texts(recording.turns, lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False)))
        row = episode_row(number, recording, _EVALUATED)
        turns = [turn_row(number, t, turn, texts[t], None) for t, turn in enumerate(recording.turns)]
        parts.add(row, turns, sum(len(turn.prompt_ids) + len(turn.response_ids) for turn in recording.turns))
        recorded.append(Recorded(_named(row, EPISODES), [_named(turn, TURNS) for turn in turns]))
    parts.finish()
    return recorded


def _named(row: Sequence[Any], columns: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    return dict(zip((name for name, *_ in columns), row, strict=True))


def judged(recorded: Recorded) -> Episode:
    """A finished episode of a run's trajectories, for evaluators. Raises ValueError where it has no turns."""
    turns = recorded.turns
    seen = [turn["prompt"] for turn in turns[1:]] + [""]
    return Episode(
        outcome=recorded.row["outcome"],
        task=_CONTROL_TOKEN.sub(" ", turns[0]["prompt"]) if turns else "",
        steps=tuple(_steps(turns, [_CONTROL_TOKEN.sub(" ", text).strip() for text in seen])),
    )


def _steps(turns: Sequence[dict[str, Any]], observations: Sequence[str]) -> Iterator[Step]:
    before = 0  # tokens that a prompt which goes on has in common with the turn before and its response
    for turn, observation in zip(turns, observations, strict=True):
        cached = before if turn["continues"] else 0
        prompt = cached + len(turn["prompt_ids"])
        before = prompt + len(turn["response_ids"])
        facts = json.loads(turn["tool"]) if turn["tool"] is not None else {}
        yield Step(
            anchor=turn["anchor"],
            next_anchor=turn["next_anchor"],
            action=turn["action"],
            progress=turn["progress"],
            calls=tuple(calls_of(turn["action"], facts.get("calls"))),
            violations=tuple(facts.get("violations", ())),
            prompt_tokens=prompt,
            cached_tokens=cached,
            response_tokens=len(turn["response_ids"]),
            response=_CONTROL_TOKEN.sub(" ", turn["response"]).strip(),
            observation=observation,
        )


def without_texts(episode: Episode) -> Episode:
    """What scores by states need of an episode, in little room: names of states and arguments by their digests."""
    return msgspec.structs.replace(episode, task="", steps=tuple(_without_texts(step) for step in episode.steps))


def _without_texts(step: Step) -> Step:
    return msgspec.structs.replace(
        step,
        anchor=_digest(step.anchor),
        next_anchor=_digest(step.next_anchor),
        action=None if step.action is None else _digest(step.action),
        calls=tuple(msgspec.structs.replace(call, arguments=_digest(call.arguments)) for call in step.calls),
        response="",
        observation="",
    )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()
