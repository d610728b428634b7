"""Writes every episode of a run to Parquet, on a thread of its own: the run never waits for it and never ends by it.

Workers tell of every episode that ended. One that went to the buffer is held until the learner's verdict on its group
comes, with its credit; the others are written at once. What is held when the recorder is closed, or for which there is
no room, is written as `pending`; a group that is judged after all is written from what the learner was given, so that
an episode may have two rows, of which the later one counts. What it can't keep up with is dropped and counted. An error
of the disk stops the recording for the rest of the run: `problem` says so.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
from transformers import AutoTokenizer

from milepost.cluster.trajectories.fates import Fate
from milepost.cluster.trajectories.judgement import Judgement
from milepost.cluster.trajectories.parts import Parts
from milepost.cluster.trajectories.recording import EVALUATION, Batch, Recording, Told, of_trajectory
from milepost.cluster.trajectories.table import Judged, episode_row, turn_row
from milepost.cluster.trajectories.text import Decode, turn_texts
from milepost.learner.episode_credit import EpisodeCredit

logger = logging.getLogger(__name__)
Follower = Callable[[int, Recording, Judged, Sequence[tuple[str, str]]], None]
"""Is told of an episode once its row is made: the row's number, the episode, what became of it, and the texts of its
turns. It neither waits nor raises."""
_WAITING_BYTES = 128 * 1024**2
"""Of jobs that the thread has not begun; beyond that it cannot keep up, or the disk does not answer."""
_HELD_BYTES = 256 * 1024**2
_TOKEN_BYTES = 16
_GROUPS_REMEMBERED = 10_000
_LAST_WORDS_S = 20.0
_LOOK_S = 1.0
_WITHOUT_IT = "its group was judged without it"
_NO_VERDICT = "no verdict on its group had come"


@dataclass(slots=True)
class _GroupHeld:
    """The episodes of a group that wait for a verdict, and how many of it failed."""

    told: dict[int, Told] = field(default_factory=dict)
    failed: int = 0


class Recorder:
    """The trajectories of one run. Its methods may be called at any time and return at once, `close` aside."""

    def __init__(self, folder: Path, *, policy: Path, max_bytes: int, group_size: int, strategy: str) -> None:
        """Record into `folder`, with the tokenizer of the model folder `policy`."""
        self.problem = ""
        """Why nothing is recorded any more, for people; empty while all is well."""
        self._folder = folder
        self._writing = _Writing(folder, policy, max_bytes, group_size, strategy)
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], int]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        self._lost = 0
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="trajectories", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Episodes that were not recorded because there was no room for them on the way."""
        return self._lost

    def follow(self, follower: Follower) -> None:
        """Tell `follower` of every episode that is written from here on."""
        self._writing.follower = follower

    def add(self, batch: Batch) -> None:
        """What a worker has told."""
        self._lost += batch.lost
        size = sum(len(told.payload) for told in batch.told)
        self._put(lambda: self._writing.add(batch.told), size, len(batch.told))

    def judge(self, judgements: Sequence[Judgement]) -> None:
        """What became of groups that the learner was given."""
        episodes = [trajectory for judgement in judgements for trajectory in judgement.group.trajectories]
        tokens = sum(len(t.turns[-1].prompt_ids) + t.num_tokens for t in episodes)
        self._put(lambda: self._writing.judge(judgements), _TOKEN_BYTES * tokens, len(episodes))

    def end(self, group_id: str, fate: Fate, reason: str) -> None:
        """A group left the buffer and the learner was not given it."""
        self._put(lambda: self._writing.end(group_id, fate, reason), 0, 0)

    def undo(self, version: int) -> None:
        """The run goes back to policy `version`: what newer ones sampled is stale."""
        self._put(lambda: self._writing.undo(version), 0, 0)

    def close(self) -> None:
        """Write what is held and end, within 20 s: a disk that does not answer is not waited for."""
        self._is_closing.set()
        self._put(self._writing.close, 0, 0)
        self._thread.join(_LAST_WORDS_S)
        if self._thread.is_alive():
            self.problem = f"the last trajectories were not written within {_LAST_WORDS_S:g} s, and are left out"

    def _put(self, job: Callable[[], None], size: int, episodes: int) -> None:
        with self._lock:
            is_full = self._waiting_bytes + size > _WAITING_BYTES
            self._waiting_bytes += 0 if is_full else size
            self._lost += episodes if is_full else 0
        if not is_full:
            self._jobs.put((job, size))

    def _work(self) -> None:
        while not (self._is_closing.is_set() and self._jobs.empty()):
            with contextlib.suppress(queue.Empty):
                job, size = self._jobs.get(timeout=_LOOK_S)
                self._try(job)
                with self._lock:
                    self._waiting_bytes -= size
            self._try(self._writing.tend)

    def _try(self, job: Callable[[], None]) -> None:
        try:
            if not self.problem:
                job()
        except Exception as error:  # whatever it is, the run goes on
            reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{error}"
            what = f"{type(error).__name__}: {reason}".splitlines()[0]
            self.problem = f"trajectories are not recorded any more ({what}, in {self._folder}); the run goes on"
            logger.warning("%s", self.problem, exc_info=error)
            self._writing.abandon()


class _Writing:
    """What the thread does, one job after the other."""

    def __init__(self, folder: Path, policy: Path, max_bytes: int, group_size: int, strategy: str) -> None:
        self._folder, self._policy, self._max_bytes = folder, policy, max_bytes
        self._group_size, self._strategy = group_size, strategy
        self.follower: Follower | None = None
        self._parts: Parts | None = None
        self._decode: Decode | None = None
        self._held: dict[str, _GroupHeld] = {}  # by group, the one that was told of first first
        self._held_bytes = 0
        self._over: dict[str, frozenset[int]] = {}
        """Groups judged last, and their episodes."""

    def add(self, told: Sequence[Told]) -> None:
        for one in told:
            match one.what:
                case "open":
                    self._hold(one)
                case "ended":
                    self._write_ended(one)
                case "late" | "failed":
                    self._refuse(one, one.what)
        while self._held_bytes > _HELD_BYTES:
            self.end(next(iter(self._held)), "pending", _NO_VERDICT)

    def judge(self, judgements: Sequence[Judgement]) -> None:
        for each in judgements:
            held = self._release(each.group.group_id)
            for trajectory, credit in zip(each.group.trajectories, each.credits, strict=True):
                held.told.pop(trajectory.index, None)
                self._write(of_trajectory(trajectory), self._judged(each, credit))
            for told in held.told.values():
                self._write(_decoded(told), Judged(fate="late", reason=_WITHOUT_IT))
            self._over[each.group.group_id] = frozenset(t.index for t in each.group.trajectories)
            if len(self._over) > _GROUPS_REMEMBERED:
                del self._over[next(iter(self._over))]

    def _judged(self, each: Judgement, credit: EpisodeCredit | None) -> Judged:
        return Judged(
            fate=each.fate,
            reason=each.reason,
            learner_version=each.learner_version,
            strategy=None if credit is None else self._strategy,
            credit=credit,
        )

    def end(self, group_id: str, fate: Fate, reason: str) -> None:
        for told in self._release(group_id).told.values():
            self._write(_decoded(told), Judged(fate=fate, reason=reason))

    def undo(self, version: int) -> None:
        reason = f"the run went back to policy version {version}, and newer weights had sampled it"
        for group_id in list(self._held):
            members = [_decoded(told) for told in self._held[group_id].told.values()]
            spans = [span for member in members for turn in member.turns for span in turn.versions]
            if any(span.version > version for span in spans):
                self.end(group_id, "stale", reason)

    def tend(self) -> None:
        if self._parts is not None and self._parts.wait_s == 0:
            self._parts.finish()

    def close(self) -> None:
        for group_id in list(self._held):
            self.end(group_id, "pending", _NO_VERDICT)
        if self._parts is not None:
            self._parts.finish()

    def abandon(self) -> None:
        self._held.clear()
        if self._parts is not None:
            self._parts.abandon()

    def _refuse(self, told: Told, fate: Literal["late", "failed"]) -> None:
        held = self._held.get(told.group_id)
        ended = held.told.pop(told.index, None) if held else None
        if held is not None and ended is not None:
            self._held_bytes -= len(ended.payload)
            self._write(_decoded(ended), Judged(fate=fate, reason=told.reason))
            held.failed += fate == "failed"
            self._end_if_alone(told.group_id)

    def _hold(self, told: Told) -> None:
        if told.group_id in self._over:  # judged before its worker was asked
            if told.index not in self._over[told.group_id]:
                self._write(_decoded(told), Judged(fate="late", reason=_WITHOUT_IT))
            return
        held = self._held.setdefault(told.group_id, _GroupHeld())
        before = held.told.get(told.index)
        if before is not None:  # played twice, and this one was told of before the buffer refused either
            self._refuse(replace(before, reason="another worker played it again"), "late")
        held.told[told.index] = told
        self._held_bytes += len(told.payload)
        self._end_if_alone(told.group_id)

    def _write_ended(self, told: Told) -> None:
        recording = _decoded(told)
        fate: Fate = "evaluation" if recording.outcome is not None else "failed"
        self._write(recording, Judged(fate=fate, reason=recording.error))
        if told.group_id != EVALUATION and told.group_id not in self._over:
            self._held.setdefault(told.group_id, _GroupHeld()).failed += 1
            self._end_if_alone(told.group_id)

    def _end_if_alone(self, group_id: str) -> None:
        """A group of which at most one episode survived is over: there is nothing to compare."""
        held, size = self._held[group_id], self._group_size
        if held.failed + len(held.told) >= size and len(held.told) < 2:
            self.end(group_id, "filtered", f"{held.failed} of {size} episodes of its group failed: nothing to compare")

    def _release(self, group_id: str) -> _GroupHeld:
        held = self._held.pop(group_id, _GroupHeld())
        self._held_bytes -= sum(len(told.payload) for told in held.told.values())
        return held

    def _write(self, recording: Recording, judged: Judged) -> None:
        parts, decode = self._ready()
        number, turns, credit = parts.next_number, recording.turns, judged.credit
        texts = turn_texts(turns, decode)
        rows = [turn_row(number, t, turn, texts[t], credit) for t, turn in enumerate(turns)]
        tokens = sum(len(turn.prompt_ids) + len(turn.response_ids) for turn in turns)
        parts.add(episode_row(number, recording, judged), rows, tokens)
        if self.follower is not None:
            self.follower(number, recording, judged, texts)

    def _ready(self) -> tuple[Parts, Decode]:
        if self._parts is None or self._decode is None:
            tokenizer: Any = AutoTokenizer.from_pretrained(self._policy, trust_remote_code=False)
            self._decode = lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False))
            self._parts = Parts(self._folder, max_bytes=self._max_bytes)
        return self._parts, self._decode


def _decoded(told: Told) -> Recording:
    return msgspec.msgpack.decode(told.payload, type=Recording)
