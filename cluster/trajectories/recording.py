"""An episode as it is recorded, finished or failed, and the queue in which a worker keeps it for the driver.

A turn keeps what its prompt added to the turn before and its response, so that a recording of T turns takes O(T)
tokens; where an agent's conversations take turns, whole prompts. Recording never waits and never raises: what has no
room is counted as lost.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from milepost.actors.resources import OpenTurn
from milepost.envs.types import Failure, Outcome, Task, Trajectory, Turn, VersionSpan

logger = logging.getLogger(__name__)
_MAX_BYTES = 16 * 1024**2
EVALUATION = "eval"
"""Group of the episodes that are played outside the ledger."""


class RecordedTurn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One exchange. Of one that broke off, the response may be empty, and what the environment says is missing."""

    prompt_ids: list[int]
    """What the prompt added to the turn before and its response; the whole prompt where `continues` is False."""
    continues: bool
    response_ids: list[int] = []
    logprobs: list[float] = []
    versions: list[VersionSpan] = []
    anchor: str | None = None
    next_anchor: str | None = None
    action: str | None = None
    reward: float | None = None
    progress: float | None = None
    tool: dict[str, Any] | None = None
    stopped: bool | None = None
    started_s: float = 0.0
    generate_s: float | None = None
    env_s: float | None = None
    lineage: int = 0
    parent_lineage: int | None = None


class Recording(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One episode that ended. `outcome` is None and `error` says why where it failed."""

    task: Task
    group_id: str
    index: int
    turns: list[RecordedTurn]
    outcome: Outcome | None = None
    error: str = ""
    """Boundary, class and message of what ended a failed one."""
    cohort: str = ""
    started_at: float = 0.0
    seconds: float | None = None
    success_reported: bool | None = None


def of_trajectory(trajectory: Trajectory) -> Recording:
    """A finished episode as it is recorded."""
    return Recording(
        task=trajectory.task,
        group_id=trajectory.group_id,
        index=trajectory.index,
        turns=_recorded(trajectory.turns),
        outcome=trajectory.outcome,
        cohort=trajectory.cohort,
        started_at=trajectory.started_at,
        seconds=trajectory.seconds,
        success_reported=trajectory.success_reported,
    )


def of_failure(failure: Failure, turns: Sequence[Turn], broke_off: OpenTurn | None) -> Recording:
    """A failed episode: the turns it played, and the exchange in which it broke off, if it was in one."""
    played = _recorded(turns)
    if broke_off is not None:
        added, continues = _added(broke_off.prompt_ids, turns[-1] if turns else None)
        answer = broke_off.completion
        played.append(
            RecordedTurn(
                prompt_ids=added,
                continues=continues,
                response_ids=answer.response_ids if answer else [],
                logprobs=answer.logprobs if answer else [],
                versions=answer.versions if answer else [],
                stopped=answer.stopped if answer else None,
                started_s=broke_off.started_s,
            )
        )
    return Recording(
        task=failure.task,
        group_id=failure.group_id,
        index=failure.index,
        turns=played,
        error=f"{failure.boundary}: {failure.error}: {failure.message}",
        cohort=failure.cohort,
        started_at=failure.started_at,
        seconds=failure.seconds,
    )


def _recorded(turns: Sequence[Turn]) -> list[RecordedTurn]:
    recorded, before = [], None
    for turn in turns:
        added, continues = _added(turn.prompt_ids, before)
        recorded.append(
            RecordedTurn(
                prompt_ids=added,
                continues=continues,
                response_ids=turn.response_ids,
                logprobs=turn.logprobs,
                versions=turn.versions,
                anchor=turn.anchor,
                next_anchor=turn.next_anchor,
                action=turn.action,
                reward=turn.reward,
                progress=turn.progress,
                tool=turn.tool,
                stopped=turn.stopped,
                started_s=turn.started_s,
                generate_s=turn.generate_s,
                env_s=turn.env_s,
                lineage=turn.lineage,
                parent_lineage=turn.parent_lineage,
            )
        )
        before = turn
    return recorded


def _added(prompt_ids: Sequence[int], before: Turn | None) -> tuple[list[int], bool]:
    """What `prompt_ids` adds to the turn `before` it, and True; all of it, and False, where it does not continue it."""
    if before is None or not before.is_continued_by(prompt_ids):
        return list(prompt_ids), False
    return list(prompt_ids[len(before.prompt_ids) + len(before.response_ids) :]), True


What = Literal["open", "ended", "late", "failed"]
"""open: it went to the buffer, and its fate comes from the learner; ended: it did not, since it failed or was played to
evaluate. The others are of an episode that was told of as open: the buffer did not take it."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a worker tells of one episode."""

    group_id: str
    index: int
    what: What
    payload: bytes
    """Msgpack of its `Recording`; empty where it was told of before."""
    reason: str = ""
    """Why the buffer did not take it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a worker has told since it was last asked."""

    told: list[Told]
    lost: int
    """Episodes for which it had no room, or that it could not encode."""


class RecordingQueue:
    """What one worker has to tell, at most 16 MiB of it."""

    def __init__(self) -> None:
        self._told: deque[Told] = deque()
        self._bytes = 0
        self._lost = 0

    def ended(self, result: Trajectory | Failure, turns: Sequence[Turn], broke_off: OpenTurn | None) -> None:
        """An episode ended; of a failed one, the turns it played and the one in which it broke off, if any."""
        try:
            if isinstance(result, Trajectory):
                payload = msgspec.msgpack.encode(of_trajectory(result))
            else:
                payload = msgspec.msgpack.encode(of_failure(result, turns, broke_off))
        except Exception as error:  # a meter ends no episode, whatever user code put into it
            logger.warning("episode %d of group %s is not recorded: %s", result.index, result.group_id, error)
            self._lost += 1
            return
        is_open = isinstance(result, Trajectory) and result.group_id != EVALUATION
        self._add(Told(result.group_id, result.index, "open" if is_open else "ended", payload))

    def refused(self, group_id: str, index: int, what: Literal["late", "failed"], reason: str) -> None:
        """The buffer did not take an episode that has ended."""
        self._add(Told(group_id, index, what, b"", reason))

    def take(self) -> Batch:
        """All that there is to tell; it is then forgotten here."""
        batch = Batch(list(self._told), self._lost)
        self._told.clear()
        self._bytes = self._lost = 0
        return batch

    def _add(self, told: Told) -> None:
        if self._bytes + len(told.payload) > _MAX_BYTES:
            self._lost += 1
            return
        self._bytes += len(told.payload)
        self._told.append(told)
